//! Any bytes as what a hostile host sends to the agent of a guest, and what a hostile guest sends to the host. Both
//! read by the same door, and neither trusts the other: what comes out is whole, took no more bytes than there were,
//! and is the same however the bytes were cut; what does not fit is refused before it is waited for.
#![no_main]

use std::fmt::Debug;

use libfuzzer_sys::fuzz_target;
use moat_model::agent::{Answer, FRAME_HEADER_BYTES, FrameError, MAX_FRAME_BYTES, Request, decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The length that a frame claims.
fn claimed(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<FRAME_HEADER_BYTES>()?;
    Some(u32::from_le_bytes(*header) as usize)
}

fn read<T: DeserializeOwned + Serialize + PartialEq + Debug>(bytes: &[u8], exact: fn(&T) -> bool) {
    let whole = claimed(bytes).filter(|length| bytes.len() >= FRAME_HEADER_BYTES + length);
    match decode::<T>(bytes) {
        Ok(None) => {
            assert_eq!(whole, None, "a frame that is whole is waited for");
            assert!(claimed(bytes).is_none_or(|length| length <= MAX_FRAME_BYTES));
        }
        Ok(Some((value, length))) => {
            assert_eq!(whole.map(|text| text + FRAME_HEADER_BYTES), Some(length));
            let (head, tail) = bytes.split_at(length);
            assert_eq!(decode::<T>(&head[..length - 1]), Ok(None), "a part is taken for the whole");
            // What stands behind a frame is another's.
            if !tail.is_empty() {
                assert_eq!(decode::<T>(head), Ok(Some((value, length))));
                return;
            }
            match encode(&value) {
                Ok(again) if exact(&value) => assert_eq!(decode(&again), Ok(Some((value, again.len())))),
                Ok(again) => assert!(decode::<T>(&again).is_ok_and(|found| found.is_some())),
                // Fields that were left out take room when they are written.
                Err(error) => assert!(matches!(error, FrameError::TooLong(_)), "{error}"),
            }
        }
        Err(FrameError::TooLong(length)) => {
            assert!(length > MAX_FRAME_BYTES && claimed(bytes) == Some(length));
        }
        Err(FrameError::Malformed(why)) => {
            assert!(whole.is_some() && !why.is_empty(), "refused before it was whole: {why}");
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    read::<Request>(bytes, |_| true);
    // Statistics are passed on as they are; a fraction in them may come out with another last digit.
    read::<Answer>(bytes, |answer| !matches!(answer, Answer::Stats { .. }));
});
