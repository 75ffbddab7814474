//! Answering: what a question is about, who asks, and what may be told.
//!
//! The question comes from a workload and is hostile. [`Question::parse`] is its door; behind it is a name in
//! small letters, a type, and what an answer must repeat.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use moat_model::network::{EndpointState, NetworkState};

use crate::Result;
use crate::store::{self, Store};

/// A question that makes sense.
#[derive(Debug)]
pub struct Question {
    id: u16,
    query: Query,
    recursion: bool,
    /// The name in small letters, without the dot at its end.
    name: String,
}

/// What becomes of a question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// This is the answer.
    Answer(Vec<u8>),
    /// The outside is asked, by these servers in turn.
    Ask(Vec<IpAddr>),
    /// Nobody who may ask.
    Ignore,
}

/// Who is on which network; read again when it changed.
#[derive(Debug)]
pub(crate) struct Zone {
    store: Store,
    network: String,
    known: BTreeMap<String, (SystemTime, Vec<EndpointState>)>,
}

impl Question {
    /// Reads one question. `Err` holds the answer to what is none, where there is one.
    pub fn parse(bytes: &[u8]) -> std::result::Result<Self, Option<Vec<u8>>> {
        let message = Message::from_vec(bytes).map_err(|_| None)?;
        let meta = &message.metadata;
        if meta.message_type != MessageType::Query {
            return Err(None);
        }
        let refuse = |code| Message::error_msg(meta.id, meta.op_code, code).to_vec().ok();
        if meta.op_code != OpCode::Query {
            return Err(refuse(ResponseCode::NotImp));
        }
        let [query] = message.queries.as_slice() else { return Err(refuse(ResponseCode::FormErr)) };
        let name = query.name().to_lowercase().to_ascii();
        Ok(Self {
            id: meta.id,
            recursion: meta.recursion_desired,
            name: name.trim_end_matches('.').to_owned(),
            query: query.clone(),
        })
    }

    /// The name that it is about, in small letters and without the dot at its end.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The answer that there is nothing; `None` where the question can not be repeated.
    pub fn refused(&self) -> Option<Vec<u8>> {
        self.answer(ResponseCode::Refused, Vec::new())
    }

    /// An answer with these records.
    pub(crate) fn answer(&self, code: ResponseCode, records: Vec<Record>) -> Option<Vec<u8>> {
        let mut message = Message::response(self.id, OpCode::Query);
        message.metadata.response_code = code;
        message.metadata.recursion_desired = self.recursion;
        message.metadata.recursion_available = true;
        message.add_query(self.query.clone());
        message.add_answers(records);
        message.to_vec().ok()
    }

    /// The address that a reverse question is about.
    fn reverse(&self) -> Option<IpAddr> {
        if self.query.query_type() != RecordType::PTR {
            return None;
        }
        let net = self.query.name().parse_arpa_name().ok()?;
        let whole = if net.addr().is_ipv4() { 32 } else { 128 };
        (net.prefix_len() == whole).then(|| net.addr())
    }
}

/// Names change with every start of a workload: nobody is to keep them.
const TTL_S: u32 = 0;

impl Zone {
    pub(crate) fn new(store: Store, network: String) -> Self {
        Self { store, network, known: BTreeMap::new() }
    }

    /// What becomes of a question that `source` asked on this zone's network.
    pub(crate) fn decide(&mut self, question: &Question, source: IpAddr) -> Result<Decision> {
        let networks = self.store.list_networks()?;
        let Some(own) = networks.iter().find(|one| one.id == self.network) else {
            return Ok(Decision::Ignore);
        };
        let own_id = own.id.clone();
        let asker = self.endpoints(&own_id)?.iter().find(|one| has(one, source)).cloned();
        let host = own.subnets.iter().any(|one| one.gateway == source);
        let (visible, outside, dns) = match &asker {
            Some(asker) => {
                let attachment = self.store.load_attachment(&asker.workload)?;
                let places = attachment.map(|one| one.endpoints).unwrap_or_default();
                let outside = places.iter().any(|one| one.gateway.is_some() || one.gateway6.is_some());
                let visible = |one: &&NetworkState| places.iter().any(|place| place.network_id == one.id);
                (networks.iter().filter(visible).collect::<Vec<_>>(), outside, asker.dns.clone())
            }
            None if host => (vec![own], false, Vec::new()),
            // It left meanwhile, or never was here.
            None => return Ok(Decision::Ignore),
        };
        if question.query.query_class() != DNSClass::IN {
            return Ok(answer(question.refused()));
        }
        if let Some(records) = self.records(question, &visible)? {
            return Ok(answer(question.answer(ResponseCode::NoError, records)));
        }
        let ours = question.reverse().is_some_and(|address| {
            networks.iter().any(|one| one.subnets.iter().any(|net| net.subnet.contains(&address)))
        });
        if !outside || ours {
            return Ok(answer(question.answer(ResponseCode::NXDomain, Vec::new())));
        }
        let servers = if dns.is_empty() { crate::resolv_conf::servers_of_host() } else { dns };
        if servers.is_empty() {
            return Ok(answer(question.answer(ResponseCode::ServFail, Vec::new())));
        }
        Ok(Decision::Ask(servers))
    }

    /// The records of a name or an address of ours; `None` where it is not ours.
    fn records(&mut self, question: &Question, visible: &[&NetworkState]) -> Result<Option<Vec<Record>>> {
        let mut met = false;
        let mut records = Vec::new();
        let name = question.query.name();
        let reverse = question.reverse();
        for network in visible {
            for endpoint in self.endpoints(&network.id)? {
                let called = |one: &String| {
                    let one = one.to_ascii_lowercase();
                    question.name == one
                        || question.name == format!("{one}.{}", network.name.to_ascii_lowercase())
                };
                if reverse.is_some_and(|address| has(endpoint, address)) {
                    met = true;
                    let target = endpoint.names.first().map(|first| format!("{first}.{}.", network.name));
                    let target = target.and_then(|target| Name::from_ascii(target).ok());
                    records.extend(
                        target.map(|target| Record::from_rdata(name.clone(), TTL_S, RData::PTR(PTR(target)))),
                    );
                } else if endpoint.names.iter().any(called) {
                    met = true;
                    records.extend(
                        address(endpoint, question.query.query_type())
                            .map(|data| Record::from_rdata(name.clone(), TTL_S, data)),
                    );
                }
            }
        }
        // Who has several addresses under one name gets each of them first in turn.
        if records.len() > 1 {
            let turn = usize::from(question.id) % records.len();
            records.rotate_left(turn);
        }
        Ok(met.then_some(records))
    }

    fn endpoints(&mut self, network: &str) -> Result<&[EndpointState]> {
        /// The clock of files may be this much behind.
        const TICK: Duration = Duration::from_millis(20);
        let changed = std::fs::metadata(self.store.endpoints(network)).and_then(|found| found.modified());
        let changed = changed.unwrap_or(SystemTime::UNIX_EPOCH);
        let quiet = changed.elapsed().is_ok_and(|age| age > TICK);
        let kept = self.known.get(network).is_some_and(|(when, _)| *when == changed);
        if !(kept && quiet) {
            let found = self.store.list_endpoints(network)?;
            self.known.insert(network.to_owned(), (changed, found));
        }
        Ok(self.known.get(network).map(|(_, found)| found.as_slice()).unwrap_or_default())
    }

    /// Whether nobody is on the network any more.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        Ok(store::names(&self.store.endpoints(&self.network))?.is_empty())
    }
}

fn answer(bytes: Option<Vec<u8>>) -> Decision {
    bytes.map_or(Decision::Ignore, Decision::Answer)
}

fn has(endpoint: &EndpointState, address: IpAddr) -> bool {
    endpoint.ip.is_some_and(|net| address == net.addr())
        || endpoint.ip6.is_some_and(|net| address == net.addr())
}

fn address(endpoint: &EndpointState, kind: RecordType) -> Option<RData> {
    match kind {
        RecordType::A => endpoint.ip.map(|net| RData::A(A(net.addr()))),
        RecordType::AAAA => endpoint.ip6.map(|net| RData::AAAA(AAAA(net.addr()))),
        _ => None,
    }
}
