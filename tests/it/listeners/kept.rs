//! Encrypted listeners where a keeper holds the sockets and the resolver has no privilege.
//!
//! In a network namespace, as `firewall`, with its rule for skipping.

use std::os::unix::fs::PermissionsExt;

use hickory_proto::rr::RecordType;

use super::{NAME, Pair, connect, framed, place, read_frame, secured, send, slow_and_quick};
use crate::harness::question;
use crate::netns::in_namespace;

#[test]
fn the_kept_resolver_reads_the_key_and_answers_on_the_keepers_sockets() {
    in_namespace(async || {
        let (upstream, pair) = (slow_and_quick().await, Pair::new(&[NAME]));
        let setup = secured(&upstream, &pair).with("[export.nftables]", "mode = \"own\"");
        let setup = setup.with("learn", "hold = \"1s\"").with("catalogue", "watch = false");
        let mut greenlane = setup.start().await;
        std::fs::set_permissions(greenlane.path("key.pem"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let dot = place(&greenlane, "DoT on ");
        let asked = framed(&question("a.example", RecordType::A).to_vec().unwrap());
        let mut stream = connect(dot, &pair.der, &["dot"]).await.unwrap();
        send(&mut stream, &asked).await;
        assert!(read_frame(&mut stream).await.is_some());
        let new = Pair::new(&[NAME]);
        new.put(&greenlane);
        std::fs::set_permissions(greenlane.path("key.pem"), std::fs::Permissions::from_mode(0o600)).unwrap();
        greenlane.signal("HUP");
        let mut taken = None;
        for _ in 0..300 {
            taken = connect(dot, &new.der, &["dot"]).await.ok();
            if taken.is_some() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        let mut stream = taken.unwrap_or_else(|| panic!("the new pair is not in force\n{}", greenlane.log()));
        send(&mut stream, &asked).await;
        assert!(read_frame(&mut stream).await.is_some());
        greenlane.signal("TERM");
        assert_eq!(greenlane.ended().await, Some(0));
    });
}
