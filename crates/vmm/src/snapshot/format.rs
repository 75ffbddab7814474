//! The form of the state's file. This is the door for a snapshot: behind it the bytes are those that were
//! written, or those of whoever has the key.

use sha2::{Digest, Sha256};

use super::{Key, MachineState};
use crate::{Error, Result};

const MAGIC: [u8; 8] = *b"MOATVMS\n";
/// Grows with every change of the form; there is no reading of other versions.
const VERSION: u32 = 1;
/// Magic, version, whether the sum is keyed, length, sum.
const HEAD_BYTES: usize = 8 + 4 + 4 + 8 + 32;

/// The state as bytes, with its sum; keyed where there is a key.
pub fn encode(state: &MachineState, key: Option<&Key>) -> Result<Vec<u8>> {
    let payload =
        postcard::to_stdvec(state).map_err(|error| Error::new(format!("writing the state: {error}")))?;
    let mut bytes = Vec::with_capacity(HEAD_BYTES + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&u32::from(key.is_some()).to_le_bytes());
    bytes.extend_from_slice(&(payload.len() as u64).to_le_bytes());
    let sum = sum(&bytes, &payload, key);
    bytes.extend_from_slice(&sum);
    bytes.extend_from_slice(&payload);
    Ok(bytes)
}

/// The state out of bytes. Refused with the reason: another form, cut short, changed, not of this key.
pub fn decode(bytes: &[u8], key: Option<&Key>) -> Result<MachineState> {
    let cut = || Error::new("the state is cut short");
    let (head, payload) = bytes.split_at_checked(HEAD_BYTES).ok_or_else(cut)?;
    let (described, told) = head.split_at_checked(HEAD_BYTES - 32).ok_or_else(cut)?;
    let number = |at: usize| head.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    if head.get(..8) != Some(&MAGIC) {
        return Err(Error::new("this is no snapshot of moat-vmm"));
    }
    let version = number(8).ok_or_else(cut)?;
    if version != VERSION {
        return Err(Error::new(format!(
            "the snapshot has version {version}, and this monitor reads {VERSION}"
        ))
        .hint("make it anew with this version of moat-vmm"));
    }
    match (number(12).ok_or_else(cut)?, key) {
        (0, None) | (1, Some(_)) => {}
        (1, None) => {
            return Err(
                Error::new("the snapshot is authenticated, and no key was given").hint("give it with --key")
            );
        }
        (0, Some(_)) => {
            return Err(Error::new("the snapshot is not authenticated, and a key was given"));
        }
        (other, _) => return Err(Error::new(format!("the snapshot has a sum of unknown kind {other}"))),
    }
    let length = head.get(16..24).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
    if length != Some(payload.len() as u64) {
        return Err(cut());
    }
    if !same(&sum(described, payload, key), told) {
        return Err(Error::new(
            "the state was changed after it was written, or with another key: its sum is wrong",
        ));
    }
    parse(payload)
}

/// What stands behind the sum.
fn parse(payload: &[u8]) -> Result<MachineState> {
    match postcard::take_from_bytes(payload) {
        Ok((state, [])) => Ok(state),
        Ok((_, rest)) => Err(Error::new(format!("the state has {} bytes too many", rest.len()))),
        Err(error) => Err(Error::new(format!("the state does not parse: {error}"))),
    }
}

/// SHA-256, or HMAC with it (RFC 2104), over head and payload.
fn sum(head: &[u8], payload: &[u8], key: Option<&Key>) -> [u8; 32] {
    const BLOCK: usize = 64;
    let Some(key) = key else {
        return Sha256::new().chain_update(head).chain_update(payload).finalize().into();
    };
    let pad = |with: u8| {
        let mut block = [with; BLOCK];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(head).chain_update(payload).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().into()
}

/// Compares without telling by the time where they differ.
fn same(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keyed_sum_is_hmac() {
        // RFC 4231, test case 1, whose key of 20 bytes is padded with zeros to ours of 32.
        let mut key = [0; 32];
        key[..20].fill(0x0b);
        let sum = sum(b"Hi ", b"There", Some(&key));
        let text: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(text, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
    }
}
