//! The seam for microVMs: a tap that the test opens itself, and speaks through as a guest would.

use std::fs::File;
use std::io::{Read, Write};

use moat_model::workload::NetworkingSpec;
use moat_net::{Attach, Wall};

use crate::host::{Host, place, sh};

/// What a tap puts in front of each frame.
const HEADER_BYTES: usize = 12;

#[test]
fn a_guest_is_on_the_network_as_a_container_is() {
    let host = Host::new();
    let names = ["guest".to_owned()];
    let networking = NetworkingSpec::default();
    let wish = Attach {
        workload: "guest",
        names: &names,
        networking: &networking,
        exposed: &[],
        wall: Wall::Microvm,
    };
    let guest = host.networks.prepare(&wish).unwrap().attachment;
    assert_eq!(guest.namespace, None);
    let endpoint = &guest.endpoints[0];
    let error = host.networks.join_tap("guest").unwrap_err();
    assert_eq!(error.to_string(), format!("there is no network device {}", endpoint.device));
    let mut tap = File::from(moat_linux::tap::open(&endpoint.device, false, HEADER_BYTES as u8).unwrap());
    host.networks.join_tap("guest").unwrap();
    let one = host.start("one", &[], &[]);
    // It asks who has the container's address, and is answered.
    let address = one.endpoints[0].ip.unwrap().addr().octets();
    let own = endpoint.ip.unwrap().addr().octets();
    let ask = |sender: [u8; 4]| {
        [
            &[0; HEADER_BYTES][..],
            &[0xff; 6],
            &endpoint.mac.0,
            &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1],
            &endpoint.mac.0,
            &sender,
            &[0; 6],
            &address,
        ]
        .concat()
    };
    // With another address it is not heard.
    tap.write_all(&ask([172, 17, 9, 9])).unwrap();
    let mut frame = [0; 2048];
    // As a guest does, it asks again until it is answered.
    let answer = loop {
        let answer = tap.read(&mut frame).map(|count| frame[HEADER_BYTES..count].to_vec());
        match answer {
            Ok(answer) if answer[12..14] == [8, 6] && answer[20..22] == [0, 2] => break answer,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                tap.write_all(&ask(own)).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(answer[22..28], one.endpoints[0].mac.0);
    assert_eq!(answer[38..42], own);
    assert!(sh("nft list chain bridge moat guard | grep spoofed").contains("packets 1 "));
    assert!(place(&one).sh("ip neigh").contains(&endpoint.mac.to_string()));
    host.networks.release("guest").unwrap();
    drop(tap);
    host.networks.release("one").unwrap();
}
