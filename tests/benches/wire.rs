//! What a reply costs: a question seen, an upstream's reply walked, an answer finished for a client.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use greenlane::name::Name;
use greenlane::wire::{
    Given, Question, Rules, Seen, TagOption, TagText, Transport, View, finish, limit, rtype, see, walk,
};

const RULES: Rules = Rules { min_ttl: 0, max_ttl: 86_400, negative_max_ttl: 3600, trust_ad: true };

/// Appends a name in wire form.
fn put_name(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(Name::parse(text).unwrap().as_wire());
}

fn put_record(out: &mut Vec<u8>, owner_at: usize, record_type: u16, rdata: &[u8]) {
    out.extend_from_slice(&(0xc000 | owner_at as u16).to_be_bytes());
    out.extend_from_slice(&record_type.to_be_bytes());
    out.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
    out.extend_from_slice(&(rdata.len() as u16).to_be_bytes());
    out.extend_from_slice(rdata);
}

fn put_opt(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
}

/// A query with an OPT, as stub resolvers send it.
fn query() -> Vec<u8> {
    let mut packet = vec![0xbe, 0xef, 1, 0x20, 0, 1, 0, 0, 0, 0, 0, 1];
    put_name(&mut packet, "www.example.com");
    packet.extend_from_slice(&[0, 1, 0, 1]);
    put_opt(&mut packet);
    packet
}

/// The usual answer behind a content network: three CNAMEs, then addresses, an OPT last or first in its section.
fn reply(address_count: u8, has_opt_last: bool) -> Vec<u8> {
    let extra = u8::from(!has_opt_last);
    let mut packet = vec![0xbe, 0xef, 0x81, 0x80, 0, 1, 0, 3 + address_count, 0, 0, 0, 1 + extra];
    put_name(&mut packet, "www.example.com");
    packet.extend_from_slice(&[0, 1, 0, 1]);
    let mut owner_at = 12;
    for target in ["www.example.com.cdn.example.net", "edge7.cdn.example.net", "pop.cdn.example.org"] {
        let mut rdata = Vec::new();
        put_name(&mut rdata, target);
        put_record(&mut packet, owner_at, rtype::CNAME, &rdata);
        owner_at = packet.len() - rdata.len();
    }
    for last in 0..address_count {
        put_record(&mut packet, owner_at, rtype::A, &[192, 0, 2, last]);
    }
    put_opt(&mut packet);
    if !has_opt_last {
        put_record(&mut packet, owner_at, rtype::A, &[192, 0, 2, 200]);
    }
    packet
}

/// The dearest sound reply: 64 KiB of owners with 119 labels each, all to be written anew.
fn deep_reply() -> Vec<u8> {
    let mut packet = vec![0xbe, 0xef, 0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0];
    put_name(&mut packet, "www.example.com");
    packet.extend_from_slice(&[0, 1, 0, 1]);
    // Left out without DO, so nothing behind it can stay where it is.
    put_record(&mut packet, 12, rtype::DS, &[0; 36]);
    let deep_at = packet.len();
    put_name(&mut packet, &vec!["a"; 118].join("."));
    packet.extend_from_slice(&[0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
    let mut count = 2u16;
    while packet.len() < 65_500 {
        let [high, low] = count.to_be_bytes();
        packet.extend_from_slice(&[2, b'A' + high, low]);
        put_record(&mut packet, deep_at, rtype::A, &[192, 0, 2, 2]);
        count += 1;
    }
    packet[6..8].copy_from_slice(&count.to_be_bytes());
    packet
}

fn view(packet: &[u8]) -> View<'_> {
    match see(packet, Transport::Udp) {
        Seen::Question(view) => view,
        other => panic!("{other:?}"),
    }
}

fn benches(c: &mut Criterion) {
    let packet = query();
    let question = Question::new(Name::parse("www.example.com").unwrap(), rtype::A);
    c.bench_function("see", |b| b.iter(|| see(black_box(&packet), Transport::Udp)));

    for (name, sent) in [
        ("walk/3_cnames_2_a", reply(2, true)),
        ("walk/3_cnames_200_a", reply(200, true)),
        ("walk/3_cnames_2_a_written_anew", reply(2, false)),
        ("walk/64_KiB_of_deep_names", deep_reply()),
    ] {
        c.bench_function(name, |b| b.iter(|| walk(black_box(&sent), &question, &RULES).unwrap()));
    }

    let answer = walk(&reply(2, true), &question, &RULES).unwrap().answer;
    let tag = TagOption::new(65_313, true, &TagText { app: "zoom", trigger: "zoom.us", also: &[] });
    let view = view(&packet);
    let limit = limit(&view, Transport::Udp);
    let mut out = Vec::with_capacity(1232);
    for (name, tag) in [("finish/plain", None), ("finish/tagged", Some(&tag))] {
        let given = Given { age_secs: 7, ttl_cap: None, tag };
        c.bench_function(name, |b| b.iter(|| finish(black_box(answer.kept()), &view, &given, limit, &mut out)));
    }
}

criterion_group! {
    name = wire;
    config = Criterion::default().sample_size(50);
    targets = benches
}
criterion_main!(wire);
