//! The guest's symbols, from a System.map: an address becomes a function's name.

use std::io::Read;

use crate::{Context, Error, Result};

/// More than any kernel's map has.
const MOST_BYTES: u64 = 64 << 20;

/// Functions by address.
#[derive(Debug, Default)]
pub struct Symbols {
    /// In ascending order of addresses.
    all: Vec<(u64, String)>,
}

impl Symbols {
    /// Reads lines `ADDRESS TYPE NAME`; only code counts.
    pub fn read(map: impl Read) -> Result<Self> {
        let mut text = String::new();
        map.take(MOST_BYTES).read_to_string(&mut text).context(|| "System.map")?;
        let mut all = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let fault = || Error::new(format!("System.map, line {number}: not `ADDRESS TYPE NAME`"));
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
                return Err(fault());
            };
            let address = u64::from_str_radix(address, 16).map_err(|_| fault())?;
            if ["t", "T", "w", "W"].contains(&kind) {
                all.push((address, name.to_owned()));
            }
        }
        all.sort_by_key(|(address, _)| *address);
        Ok(Self { all })
    }

    /// The place in the table of the function that an address lies in.
    pub fn place(&self, address: u64) -> Option<u32> {
        let after = self.all.partition_point(|(start, _)| *start <= address);
        u32::try_from(after.checked_sub(1)?).ok()
    }

    /// The name at a place.
    pub fn name(&self, place: u32) -> Option<&str> {
        self.all.get(place as usize).map(|(_, name)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_belongs_to_the_last_function_before_it() {
        let map = "ffffffff81000000 T _text\nffffffff81000100 t work\nffffffff82000000 D data\n";
        let symbols = Symbols::read(map.as_bytes()).unwrap();
        let name = |address| symbols.place(address).and_then(|place| symbols.name(place));
        assert_eq!(name(0xffff_ffff_8100_00ff), Some("_text"));
        assert_eq!(name(0xffff_ffff_8100_0100), Some("work"));
        assert_eq!(name(0xffff_ffff_8200_0000), Some("work"));
        assert_eq!(name(0x1000), None);
        assert!(Symbols::read("no map".as_bytes()).is_err());
    }
}
