//! The packet filter, by nf_tables' own messages: no program is called, and every change is one transaction.
//!
//! The rules stand in [`ruleset`] and never change; networks, places and published ports are elements of
//! their sets and maps. Where a table is gone (somebody flushed the ruleset), a change finds that out by itself and
//! puts everything back in the same transaction.

mod expression;
mod message;
mod ruleset;

use std::collections::{BTreeMap, BTreeSet};

use moat_linux::Errno;
use moat_linux::netlink::{Refused, Request, Socket, flag};

use crate::error::Context;
use crate::{Error, Result};
use message::{Attributes, Family};
use ruleset::{Part, Rule, Set, TABLE};

pub(crate) use ruleset::DEVICE_PREFIX;

/// At most this much of elements in one attribute, whose length has 16 bits.
const LIST_BYTES: usize = 32 << 10;
const INTERVAL_END: u32 = 1;

/// An element of a set or map, as the kernel holds it: fields are padded to 4 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) set: &'static str,
    pub(crate) key: Vec<u8>,
    /// The last key of a range.
    pub(crate) key_end: Option<Vec<u8>>,
    /// What a map leads to.
    pub(crate) data: Option<Vec<u8>>,
    /// Whether it ends a range of a set with one field.
    pub(crate) end: bool,
    /// Whether nobody else may have it: a published port.
    pub(crate) claim: bool,
    /// What an error says that it was about.
    pub(crate) what: String,
}

/// How often a rule was met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) chain: &'static str,
    pub(crate) name: &'static str,
    pub(crate) text: &'static str,
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// The base chain of somebody else that drops what is forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ForeignDrop {
    pub(crate) family: &'static str,
    pub(crate) table: String,
    pub(crate) chain: String,
    /// Whether the chain that Docker leaves to others is there.
    pub(crate) docker: bool,
}

/// Why a change did not come to hold.
pub(crate) enum Change {
    /// The tables are not there, or not whole.
    Missing,
    /// An element that nobody else may have is taken.
    Taken(String),
    Failed(Error),
}

/// A socket to the packet filter of the network namespace of this thread.
pub(crate) struct Firewall(Socket);

impl Firewall {
    pub(crate) fn open() -> Result<Self> {
        Ok(Self(Socket::netfilter()?))
    }

    /// Adds and removes elements, all or none.
    pub(crate) fn change(&mut self, add: &[Element], remove: &[Element]) -> std::result::Result<(), Change> {
        let mut requests = element_requests(remove, message::DELSETELEM);
        requests.extend(element_requests(add, message::NEWSETELEM));
        match self.0.transact(message::SUBSYSTEM, &requests) {
            Ok(()) => Ok(()),
            Err(Refused { index, error }) => Err(match error.errno() {
                Errno::NOENT => Change::Missing,
                // A range that others are part of is not empty, says the kernel.
                Errno::EXIST | Errno::NOTEMPTY | Errno::BUSY => {
                    let request = index.and_then(|index| requests.get(index));
                    Change::Taken(request.map(|request| request.what.clone()).unwrap_or_default())
                }
                _ => Change::Failed(error.into()),
            }),
        }
    }

    /// Puts the tables up anew with these elements, in one transaction: no packet sees them half-made.
    pub(crate) fn rebuild(&mut self, elements: &[Element]) -> Result<()> {
        let mut requests = Vec::new();
        for family in [Family::Inet, Family::Bridge] {
            let named = || Attributes::of(family).text(1, TABLE);
            let what = format!("table {} {TABLE}", family_name(family));
            // Made first, so that there is one to remove.
            requests.push(named().request(message::NEWTABLE, message::CREATE, what.clone()));
            requests.push(named().request(message::DELTABLE, 0, what.clone()));
            requests.push(named().request(message::NEWTABLE, message::CREATE, what));
        }
        requests.extend(ruleset::CHAINS.iter().map(chain_request));
        requests.extend(ruleset::SETS.iter().zip(1..).map(|(set, id)| set_request(set, id)));
        requests.extend(ruleset::rules().iter().map(rule_request));
        requests.extend(element_requests(elements, message::NEWSETELEM));
        let done = self.0.transact(message::SUBSYSTEM, &requests);
        done.map_err(|refused| Error::from(refused.error)).context(|| "packet filter")
    }

    /// All elements there are; `None` where a set is missing.
    pub(crate) fn elements(&mut self) -> Result<Option<BTreeSet<Element>>> {
        let mut found = BTreeSet::new();
        for set in ruleset::SETS {
            let request = Attributes::of(set.family).text(1, TABLE).text(2, set.name).into_bytes();
            let what = format!("GETSETELEM, {}", set.name);
            let answers = self.0.list(message::GETSETELEM, message::NEWSETELEM, &request, &what);
            let answers = match answers {
                Err(error) if error.errno() == Errno::NOENT => return Ok(None),
                other => other?,
            };
            found.extend(answers.iter().flat_map(|answer| parse_elements(set, answer)));
        }
        Ok(Some(found))
    }

    /// All our rules with what they counted; a rule that is missing is not in it.
    pub(crate) fn counted(&mut self) -> Result<Vec<Counted>> {
        let rules = ruleset::rules();
        let mut found = Vec::new();
        for family in [Family::Inet, Family::Bridge] {
            let request = Attributes::of(family).text(1, TABLE).into_bytes();
            let answers = self.0.list(message::GETRULE, message::NEWRULE, &request, "GETRULE");
            let answers = match answers {
                Err(error) if error.errno() == Errno::NOENT => continue,
                other => other?,
            };
            found.extend(answers.iter().filter_map(|answer| counted(&rules, family, answer)));
        }
        Ok(found)
    }

    /// Whether all our rules are there.
    pub(crate) fn is_whole(&mut self) -> Result<bool> {
        let found: BTreeSet<_> = self.counted()?.iter().map(|rule| rule.name).collect();
        Ok(ruleset::rules().iter().all(|rule| found.contains(rule.name)))
    }

    /// Chains of others whose policy drops what is forwarded: our rules can not overrule them.
    pub(crate) fn foreign_drops(&mut self) -> Result<Vec<ForeignDrop>> {
        let request = Attributes::of_raw(0).into_bytes();
        let answers = self.0.list(message::GETCHAIN, message::NEWCHAIN, &request, "GETCHAIN")?;
        let named = |answer: &[u8]| message::find(message::answer(answer), 3).map(message::text);
        let docker = answers.iter().any(|answer| named(answer).as_deref() == Some("DOCKER-USER"));
        Ok(answers.iter().filter_map(|answer| foreign_drop(answer, docker)).collect())
    }
}

fn family_name(family: Family) -> &'static str {
    match family {
        Family::Inet => "inet",
        Family::Bridge => "bridge",
    }
}

fn chain_request(chain: &ruleset::Chain) -> Request {
    let mut attributes = Attributes::of(chain.family).text(1, TABLE).text(3, chain.name);
    if let Some(hook) = &chain.hook {
        let place = Attributes::default().number(1, hook.number).number(2, hook.priority.cast_unsigned());
        attributes = attributes.nested(4, &place).number(5, 1).text(7, hook.kind);
    }
    attributes.request(message::NEWCHAIN, message::CREATE_NEW, format!("chain {}", chain.name))
}

fn words(parts: &[Part]) -> u32 {
    parts.iter().map(|part| part.bytes.next_multiple_of(4)).sum()
}

fn key_length(parts: &[Part]) -> u32 {
    match parts {
        [one] => one.bytes,
        many => words(many),
    }
}

fn type_number(parts: &[Part]) -> u32 {
    parts.iter().fold(0, |all, part| all << 6 | part.type_number)
}

fn set_request(set: &Set, id: u32) -> Request {
    const INTERVAL: u32 = 4;
    const MAP: u32 = 8;
    const CONCATENATED: u32 = 0x80;
    let mut flags = 0;
    if set.interval {
        flags |= INTERVAL;
        if set.key.len() > 1 {
            flags |= CONCATENATED;
        }
    }
    if !set.data.is_empty() {
        flags |= MAP;
    }
    let mut attributes = Attributes::of(set.family)
        .text(1, TABLE)
        .text(2, set.name)
        .number(3, flags)
        .number(4, type_number(set.key))
        .number(5, key_length(set.key))
        .number(10, id);
    if set.key.len() == 1 && set.key.iter().all(|part| part.type_number == ruleset::INTERFACE.type_number) {
        // For nft(8) alone: names are bytes in the host's order (NFTNL_UDATA_SET_KEYBYTEORDER).
        attributes = attributes.bytes(13, &[0, 4, 1, 0, 0, 0]);
    }
    if !set.data.is_empty() {
        attributes = attributes.number(6, type_number(set.data)).number(7, key_length(set.data));
    }
    if flags & CONCATENATED != 0 {
        let fields = set.key.iter().fold(Attributes::default(), |all, part| {
            all.nested(1, &Attributes::default().number(1, part.bytes))
        });
        attributes = attributes.nested(9, &Attributes::default().nested(2, &fields));
    }
    attributes.request(message::NEWSET, message::CREATE_NEW, format!("set {}", set.name))
}

fn rule_request(rule: &Rule) -> Request {
    let list = rule
        .expressions
        .iter()
        .fold(Attributes::default(), |all, expression| all.nested(1, &expression.encode()));
    // A comment: type 0, length, and a text that ends in a zero byte.
    let mut comment = vec![0, rule.name.len() as u8 + 1];
    comment.extend(rule.name.as_bytes());
    comment.push(0);
    Attributes::of(rule.family)
        .text(1, TABLE)
        .text(2, rule.chain)
        .nested(4, &list)
        .bytes(7, &comment)
        .request(message::NEWRULE, message::CREATE | flag::APPEND, format!("rule {}", rule.name))
}

/// One request for each element that may be refused for being taken, and few for all others.
fn element_requests(elements: &[Element], kind: u16) -> Vec<Request> {
    let mut requests = Vec::new();
    let mut lists: BTreeMap<&'static str, Attributes> = BTreeMap::new();
    for element in elements {
        let encoded = encode(element);
        if element.claim && kind == message::NEWSETELEM {
            let list = Attributes::default().nested(1, &encoded);
            requests.extend(list_request(element.set, &list, kind, message::CREATE_NEW, &element.what));
            continue;
        }
        let list = lists.remove(element.set).unwrap_or_default();
        if list.len() + encoded.len() > LIST_BYTES {
            requests.extend(list_request(element.set, &list, kind, message::CREATE, element.set));
            lists.insert(element.set, Attributes::default().nested(1, &encoded));
        } else {
            lists.insert(element.set, list.nested(1, &encoded));
        }
    }
    for (set, list) in &lists {
        requests.extend(list_request(set, list, kind, message::CREATE, set));
    }
    requests
}

fn list_request(name: &str, list: &Attributes, kind: u16, flags: u16, what: &str) -> Option<Request> {
    let set = ruleset::SETS.iter().find(|set| set.name == name)?;
    let flags = if kind == message::NEWSETELEM { flags } else { 0 };
    let attributes = Attributes::of(set.family).text(1, TABLE).text(2, name).nested(3, list);
    Some(attributes.request(kind, flags, what))
}

fn encode(element: &Element) -> Attributes {
    let value = |bytes: &[u8]| Attributes::default().bytes(1, bytes);
    let mut attributes = Attributes::default().nested(1, &value(&element.key));
    if let Some(end) = &element.key_end {
        attributes = attributes.nested(10, &value(end));
    }
    if let Some(data) = &element.data {
        attributes = attributes.nested(2, &value(data));
    }
    if element.end { attributes.number(3, INTERVAL_END) } else { attributes }
}

fn parse_elements(set: &Set, answer: &[u8]) -> Vec<Element> {
    let Some(list) = message::find(message::answer(answer), 3) else { return Vec::new() };
    let value = |bytes: &[u8]| message::find(message::attributes(bytes), 1).map(<[u8]>::to_vec);
    let parse = |bytes: &[u8]| {
        let field = |kind| message::find(message::attributes(bytes), kind);
        Some(Element {
            set: set.name,
            key: field(1).and_then(value)?,
            key_end: field(10).and_then(value),
            data: field(2).and_then(value),
            end: field(3).and_then(message::number).is_some_and(|flags| flags & INTERVAL_END != 0),
            claim: false,
            what: String::new(),
        })
    };
    message::attributes(list).filter(|(kind, _)| *kind == 1).filter_map(|(_, bytes)| parse(bytes)).collect()
}

fn counted(rules: &[Rule], family: Family, answer: &[u8]) -> Option<Counted> {
    let field = |kind| message::find(message::answer(answer), kind);
    let comment = field(7)?.get(2..).map(message::text)?;
    let chain = message::text(field(2)?);
    let rule = rules
        .iter()
        .find(|rule| (rule.family, rule.chain, rule.name) == (family, chain.as_str(), comment.as_str()))?;
    let counter = message::attributes(field(4)?).find_map(|(_, expression)| {
        let name = message::find(message::attributes(expression), 1).map(message::text)?;
        (name == "counter").then(|| message::find(message::attributes(expression), 2)).flatten()
    });
    let count = |kind| {
        let value = counter.and_then(|counter| message::find(message::attributes(counter), kind));
        value.map_or(0, message::long)
    };
    Some(Counted { chain: rule.chain, name: rule.name, text: rule.text, packets: count(2), bytes: count(1) })
}

fn foreign_drop(answer: &[u8], docker: bool) -> Option<ForeignDrop> {
    const FORWARD: u32 = 2;
    const DROP: u32 = 0;
    let field = |kind| message::find(message::answer(answer), kind);
    let hook = message::find(message::attributes(field(4)?), 1).and_then(message::number)?;
    let policy = field(5).and_then(message::number)?;
    let family = match answer.first()? {
        1 => "inet",
        2 => "ip",
        10 => "ip6",
        _ => return None,
    };
    let (table, chain) = (message::text(field(1)?), message::text(field(3)?));
    (hook == FORWARD && policy == DROP && table != TABLE).then_some(ForeignDrop {
        family,
        table,
        chain,
        docker,
    })
}
