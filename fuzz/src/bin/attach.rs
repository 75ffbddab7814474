//! Any bytes as a packet on a workload's attach socket, in both directions: it is read, or it is none; what is read
//! can be sent, in one packet, and is read as the same; bytes of streams pass as they are.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_engine::frame::{MAX_DATA, MAX_PACKET, Packet};

fuzz_target!(|bytes: &[u8]| {
    let Some(packet) = Packet::decode(bytes) else {
        // A stream's bytes are never refused.
        assert!(!matches!(bytes.first(), Some(b'i' | b'1' | b'2')));
        return;
    };
    let again = packet.encode();
    assert_eq!(again.first(), bytes.first());
    match &packet {
        Packet::Stdin(data) | Packet::Output(_, data) => {
            assert_eq!(*data, &bytes[1..]);
            assert_eq!(again, bytes);
            assert!(again.len() <= MAX_PACKET || data.len() > MAX_DATA);
        }
        Packet::StdinEnd | Packet::Done => assert_eq!(again, bytes),
        Packet::Resize(rows, columns) => {
            let said = [bytes[1..3].try_into(), bytes[3..5].try_into()].map(|part| part.expect("two bytes"));
            assert_eq!([*rows, *columns], said.map(u16::from_le_bytes));
            assert_eq!(again, bytes);
        }
        Packet::Request(_) | Packet::Started(_) | Packet::Failed(_) | Packet::Exit(_) => {
            assert!(again.len() <= MAX_PACKET);
            let read = Packet::decode(&again).expect("what was sent can be read");
            assert_eq!(std::mem::discriminant(&read), std::mem::discriminant(&packet));
            // Only what came as more than a packet can hold may have been cut.
            assert!(read == packet || again.len() > MAX_PACKET / 4, "{packet:?} became {read:?}");
        }
    }
});
