//! The keys that leave a workload without ending it.

/// Ctrl-P, Ctrl-Q.
pub(crate) const DEFAULT: &str = "ctrl-p,ctrl-q";

/// A sequence of keys, and how much of it was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DetachKeys {
    keys: Vec<u8>,
    typed: usize,
}

impl DetachKeys {
    /// Reads keys between commas, each a character or `ctrl-` with a letter or one of `@[\]^_`. No keys at all
    /// never leave.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let mut keys = Vec::new();
        for key in text.split(',').filter(|_| !text.is_empty()) {
            keys.push(self::key(key).ok_or_else(|| {
                format!("{key:?} is no key; write a character, or ctrl- and a letter or one of @[\\]^_")
            })?);
        }
        Ok(Self { keys, typed: 0 })
    }

    /// Takes what was typed: what of it is for the workload, and whether the keys are complete. Keys that turn out
    /// to be others after all come with the next ones.
    pub(crate) fn take(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(input.len());
        for byte in input {
            if self.keys.get(self.typed) == Some(byte) {
                self.typed += 1;
                if self.typed == self.keys.len() {
                    self.typed = 0;
                    return (passed, true);
                }
                continue;
            }
            passed.extend(self.keys.iter().take(self.typed));
            self.typed = usize::from(self.keys.first() == Some(byte));
            if self.typed == 0 {
                passed.push(*byte);
            } else if self.keys.len() == 1 {
                return (passed, true);
            }
        }
        (passed, false)
    }
}

fn key(text: &str) -> Option<u8> {
    match text.as_bytes() {
        [one] if one.is_ascii() => Some(*one),
        [rest @ .., one] if rest.eq_ignore_ascii_case(b"ctrl-") => match one {
            b'a'..=b'z' => Some(one - b'a' + 1),
            b'@' => Some(0),
            b'['..=b'_' => Some(one - b'@'),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{DEFAULT, DetachKeys};

    #[test]
    fn keys_are_read_as_docker_reads_them() {
        let keys = |text: &str| DetachKeys::parse(text).map(|keys| keys.keys);
        assert_eq!(keys(DEFAULT), Ok(vec![16, 17]));
        assert_eq!(keys("a,ctrl-@,ctrl-[,ctrl-_"), Ok(vec![b'a', 0, 27, 31]));
        assert_eq!(keys(""), Ok(vec![]));
        for text in ["ctrl-", "ctrl-P", "ctrl-1", "ab", "ä", "ctrl-p,", ","] {
            assert!(keys(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn keys_are_found_wherever_reads_end() {
        let mut keys = DetachKeys::parse(DEFAULT).unwrap();
        assert_eq!(keys.take(b"ls\n"), (b"ls\n".to_vec(), false));
        assert_eq!(keys.take(&[16]), (vec![], false));
        assert_eq!(keys.take(b"x"), (vec![16, b'x'], false));
        assert_eq!(keys.take(&[16, 16]), (vec![16], false));
        assert_eq!(keys.take(&[17, b'y']), (vec![], true));
        let mut one = DetachKeys::parse("q").unwrap();
        assert_eq!(one.take(b"abq"), (b"ab".to_vec(), true));
        let mut none = DetachKeys::parse("").unwrap();
        assert_eq!(none.take(&[16, 17]), (vec![16, 17], false));
    }
}
