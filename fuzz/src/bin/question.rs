//! Any bytes as a packet to a network's resolver: it is a question, or is refused. What was read can be answered,
//! and the answer is none that anybody would take for a question.
#![no_main]

use libfuzzer_sys::fuzz_target;
use moat_net::resolver::Question;

/// The bit that marks an answer.
fn is_answer(packet: &[u8]) -> bool {
    packet.len() >= 12 && packet[2] & 0x80 != 0
}

fuzz_target!(|bytes: &[u8]| {
    match Question::parse(bytes) {
        Ok(question) => {
            assert!(!is_answer(bytes));
            assert_eq!(question.name(), question.name().to_ascii_lowercase());
            assert!(!question.name().ends_with('.'));
            if let Some(answer) = question.refused() {
                assert!(is_answer(&answer));
                assert_eq!(answer[..2], bytes[..2]);
                assert!(Question::parse(&answer).is_err());
            }
        }
        Err(Some(answer)) => assert!(is_answer(&answer) && answer[..2] == bytes[..2]),
        Err(None) => {}
    }
});
