//! The expressions of rules: the kernel's small machine, whose registers hold 4 bytes each.

use super::message::Attributes;

/// The first register of 4 bytes (NFT_REG32_00); the others follow. Register 0 is the verdict.
const FIRST: u32 = 8;

/// What a packet's way is decided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meta {
    InterfaceIn = 6,
    InterfaceOut = 7,
    NetworkProtocol = 15,
    TransportProtocol = 16,
}

/// Which header a field is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    Link = 0,
    Network = 1,
    Transport = 2,
}

/// What connection tracking knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Connection {
    State = 0,
    Status = 2,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Drop,
    Accept,
    Jump(&'static str),
}

/// One expression. Registers are counted from 0, in words of 4 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Expression {
    /// Loads what the kernel knows of a packet.
    Meta(Meta, u32),
    /// Loads bytes of a packet: header, offset, length, register.
    Payload(Header, u32, u32, u32),
    /// Loads from connection tracking.
    Connection(Connection, u32),
    /// Loads the kind of the destination address (RTN_*).
    DestinationKind(u32),
    /// Keeps the bits of a mask, in host order.
    Mask(u32, u32),
    /// Goes on where a register begins with these bytes, or does not.
    Compare { register: u32, value: Vec<u8>, equal: bool },
    /// Goes on where the registers from 0 on are in a set, or are not.
    InSet { set: &'static str, inside: bool },
    /// Goes on where the registers from 0 on are in a map, and loads what they lead to from 0 on.
    Map(&'static str),
    /// Counts.
    Counter,
    /// Sends the connection to the address in the registers from 0 on, and the port in the one given: family
    /// and register.
    Destination(u8, Option<u32>),
    /// Gives the connection the address of the interface that it leaves by.
    Masquerade,
    /// Ends the rule.
    Verdict(Verdict),
}

impl Expression {
    /// As a list element of a rule.
    pub(crate) fn encode(&self) -> Attributes {
        let (name, data) = self.parts();
        Attributes::default().text(1, name).nested(2, &data)
    }

    fn parts(&self) -> (&'static str, Attributes) {
        let new = Attributes::default;
        let register = |word: u32| FIRST + word;
        match self {
            Self::Meta(key, to) => ("meta", new().number(1, register(*to)).number(2, *key as u32)),
            Self::Payload(header, offset, length, to) => (
                "payload",
                new()
                    .number(1, register(*to))
                    .number(2, *header as u32)
                    .number(3, *offset)
                    .number(4, *length),
            ),
            Self::Connection(key, to) => ("ct", new().number(1, register(*to)).number(2, *key as u32)),
            // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR.
            Self::DestinationKind(to) => ("fib", new().number(1, register(*to)).number(2, 3).number(3, 2)),
            Self::Mask(at, mask) => {
                let value = |bits: u32| new().bytes(1, &bits.to_ne_bytes());
                let all = new().number(1, register(*at)).number(2, register(*at)).number(3, 4);
                ("bitwise", all.nested(4, &value(*mask)).nested(5, &value(0)))
            }
            Self::Compare { register: at, value, equal } => {
                let all = new().number(1, register(*at)).number(2, u32::from(!equal));
                ("cmp", all.nested(3, &new().bytes(1, value)))
            }
            Self::InSet { set, inside } => {
                let all = new().text(1, set).number(2, register(0));
                ("lookup", if *inside { all } else { all.number(5, 1) })
            }
            Self::Map(set) => ("lookup", new().text(1, set).number(2, register(0)).number(3, register(0))),
            Self::Counter => ("counter", new().bytes(1, &[0; 8]).bytes(2, &[0; 8])),
            Self::Destination(family, port) => {
                let all = new().number(1, 1).number(2, (*family).into()).number(3, register(0));
                ("nat", port.map_or(all.clone(), |port| all.number(5, register(port))))
            }
            Self::Masquerade => ("masq", new()),
            Self::Verdict(verdict) => {
                let (code, chain) = match verdict {
                    Verdict::Drop => (0, None),
                    Verdict::Accept => (1, None),
                    Verdict::Jump(chain) => (-3_i32, Some(*chain)),
                };
                let mut told = new().number(1, code.cast_unsigned());
                if let Some(chain) = chain {
                    told = told.text(2, chain);
                }
                ("immediate", new().number(1, 0).nested(2, &new().nested(2, &told)))
            }
        }
    }
}
