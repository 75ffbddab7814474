//! Any bytes on the control socket: a request is the same wherever the stream is cut, and what is no request is
//! refused with a status that says so.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_model::vmm::MachineSpec;
use moat_vmm::control::http::{MOST_BYTES, Parsed, Response, parse};

fuzz_target!(|bytes: &[u8]| {
    match parse(bytes) {
        Parsed::Partial => {
            assert!(bytes.len() < MOST_BYTES, "a stream without an end");
            // Where the whole is not enough, no part is; a part may not be refused either.
            assert_eq!(parse(&bytes[..bytes.len() / 2]), Parsed::Partial);
        }
        Parsed::Request(request, taken, keep) => {
            assert!((1..=bytes.len()).contains(&taken) && request.body.len() < taken);
            for cut in [taken - 1, taken / 2] {
                assert_eq!(parse(&bytes[..cut]), Parsed::Partial);
            }
            let more = [&bytes[..taken], b"GET / HTTP/1.1\r\n\r\n"].concat();
            assert_eq!(parse(&more), Parsed::Request(request.clone(), taken, keep));
            if let Ok(spec) = serde_json::from_slice::<MachineSpec>(&request.body) {
                let text = serde_json::to_string(&spec).expect("a specification can be written");
                assert_eq!(serde_json::from_str::<MachineSpec>(&text).expect("and read"), spec);
            }
        }
        Parsed::Refused(status, message) => {
            assert!([400, 413].contains(&status) && !message.is_empty());
            let answer = Response::failed(status, &message).bytes(false);
            assert!(answer.starts_with(b"HTTP/1.1 4"));
        }
    }
});
