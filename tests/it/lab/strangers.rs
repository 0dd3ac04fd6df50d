//! What never comes into the kernel, whatever an answer says.

use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::rr::RecordType;

use super::rules::Way;
use super::{Lab, Seen, in_gateway, listed4, number, told};
use crate::learning::never::{HOSTILE, hostile_record, strict};
use crate::learning::{a, reply};
use crate::netns::{has, in_namespace, lists, nft};
use crate::upstream::Upstream;

#[test]
fn hostile_addresses_never_reach_the_kernel() {
    in_namespace(async || {
        let upstream = Upstream::start(|asked| {
            let hostile: IpAddr = HOSTILE[number(asked) as usize].0.parse().unwrap();
            // Beside a sound one of the other family, so that there is something to wait for.
            reply(asked, &[hostile_record(&asked.name(), hostile), a(&asked.name(), 300, Ipv4Addr::new(8, 8, 8, 8))])
        })
        .await;
        let greenlane = strict(&upstream).with("[export.nftables]", "mode = \"own\"").start().await;
        for (at, (text, _)) in HOSTILE.iter().enumerate() {
            let rtype = if text.contains(':') { RecordType::AAAA } else { RecordType::A };
            greenlane.ask(&format!("h{at}.listed.example"), rtype).await;
            greenlane.ask(&format!("h{at}.listed.example"), RecordType::A).await;
        }
        let table = nft("list table inet greenlane");
        assert!(has("learned4", "8.8.8.8"), "{table}");
        let elements: Vec<&str> = table.split("elements = {").skip(1).collect();
        assert_eq!(elements.len(), 1, "only one set has any: {table}");
        assert!(!elements[0].split_once('}').unwrap().0.contains(','), "and only one element: {table}");
    });
}

#[test]
fn own_addresses_and_injected_records_open_nothing() {
    in_gateway(async || {
        let victim = Ipv4Addr::new(198, 19, 9, 9);
        let script = move |asked: &crate::upstream::Asked| {
            let of_stranger = a("stranger.other.example", 300, victim);
            match asked.name().as_str() {
                "n1.listed.example" => asked.reply().answer(&told(listed4(1), 300)).answer(&of_stranger).act(),
                "n2.listed.example" => asked.reply().answer(&told(listed4(2), 300)).authority(&of_stranger).act(),
                "n3.listed.example" => asked.reply().answer(&told(listed4(3), 300)).additional(&of_stranger).act(),
                // The firewall itself, and the name server.
                _ => {
                    let all = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(192, 0, 2, 53), listed4(4)];
                    all.into_iter().fold(asked.reply(), |reply, addr| reply.answer(&told(addr, 300))).act()
                }
            }
        };
        let lab = Lab::start(
            Way::Redirect,
            |setup| setup.only("learn", "hold = \"1s\"\ntreat-as-public = [\"0.0.0.0/0\"]"),
            script,
        )
        .await;
        for n in 1..=4 {
            lab.client.ask(&format!("n{n}.listed.example"), RecordType::A).await;
            assert_eq!(lab.client.sees(listed4(n), &format!("n{n}.listed.example")).await, Seen::Bypassed);
            assert_eq!(lab.client.sees(victim, "stranger.other.example").await, Seen::Inspected, "n{n}");
        }
        let set = nft("list set inet greenlane learned4");
        for addr in ["10.99.0.1", "192.0.2.53", "198.19.9.9"] {
            assert!(!lists(&set, addr), "{addr}: {set}");
        }
    });
}
