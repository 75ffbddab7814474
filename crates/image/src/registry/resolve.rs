//! Host names to addresses, from /etc/hosts and the name servers of /etc/resolv.conf.
//!
//! A static program must not call getaddrinfo(3), which loads libraries at run time. The messages are hickory's; what
//! stands here is which server is asked, and for how long.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use crate::{Context, Error, Kind, Result};

/// How long a server may take, and how often each is asked.
const TIMEOUT: Duration = Duration::from_secs(5);
const ATTEMPTS: usize = 2;
/// The most addresses that the HTTP library keeps.
const MAX_ADDRESSES: usize = 16;

/// The resolver for the HTTP library.
#[derive(Debug)]
pub(super) struct HostResolver;

impl Resolver for HostResolver {
    fn resolve(
        &self,
        uri: &Uri,
        _: &Config,
        _: NextTimeout,
    ) -> std::result::Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().ok_or(ureq::Error::HostNotFound)?;
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        let addresses = lookup(host.trim_start_matches('[').trim_end_matches(']'))
            .map_err(|error| ureq::Error::Other(Box::new(error)))?;
        let mut found = self.empty();
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            found.push(SocketAddr::new(address, port));
        }
        Ok(found)
    }
}

/// The addresses of a host: itself when it is one, those of /etc/hosts, else those that a name server tells.
///
/// Errors: nobody knows the name ([`Kind::NotFound`]); no server answers.
pub fn lookup(host: &str) -> Result<Vec<IpAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let found = in_hosts(&hosts, host);
    if !found.is_empty() {
        return Ok(found);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![IpAddr::from([127, 0, 0, 1])]);
    }
    let path = "/etc/resolv.conf";
    let text = std::fs::read_to_string(path).context(|| format!("resolve {host}: {path}"))?;
    let configuration = Configuration::parse(&text);
    let mut last = Error::new(format!("no such host: {host}")).with_kind(Kind::NotFound);
    for name in configuration.candidates(host) {
        match configuration.ask(&name) {
            Ok(addresses) if !addresses.is_empty() => return Ok(addresses),
            Ok(_) => {}
            Err(error) => last = error,
        }
    }
    Err(last).context(|| format!("resolve {host}"))
}

fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_whitespace();
        let address = words.next().and_then(|word| word.parse().ok());
        if let Some(address) = address.filter(|_| words.any(|word| word.eq_ignore_ascii_case(host))) {
            found.push(address);
        }
    }
    found
}

/// What resolv.conf(5) says, as far as it is about which names are asked where.
#[derive(Debug, PartialEq, Eq)]
struct Configuration {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    dots: usize,
}

impl Configuration {
    fn parse(text: &str) -> Self {
        let mut configuration = Self { servers: Vec::new(), search: Vec::new(), dots: 1 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                // The address of a link-local server carries its link, which a socket address would need.
                Some("nameserver") => {
                    configuration.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                Some("search" | "domain") => configuration.search = words.map(str::to_owned).collect(),
                Some("options") => {
                    let dots = words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok()).next_back();
                    configuration.dots = dots.unwrap_or(configuration.dots);
                }
                _ => {}
            }
        }
        if configuration.servers.is_empty() {
            configuration.servers.push(IpAddr::from([127, 0, 0, 1]));
        }
        configuration
    }

    /// The names to ask for, in order.
    fn candidates(&self, host: &str) -> Vec<String> {
        if host.ends_with('.') {
            return vec![host.to_owned()];
        }
        let mut names: Vec<String> = self.search.iter().map(|domain| format!("{host}.{domain}.")).collect();
        let plain = format!("{host}.");
        let has_dots = host.bytes().filter(|byte| *byte == b'.').count() >= self.dots;
        names.insert(if has_dots { 0 } else { names.len() }, plain);
        names
    }

    /// Addresses of a name, IPv4 first; none when there is no such name.
    fn ask(&self, name: &str) -> Result<Vec<IpAddr>> {
        let parsed = Name::from_ascii(name).map_err(|_| Error::new(format!("{name:?} is no host name")))?;
        let mut last = Error::new(format!("no name server answers for {name}"));
        for _ in 0..ATTEMPTS {
            for server in &self.servers {
                let ask = |kind| exchange(SocketAddr::new(*server, 53), &parsed, kind);
                match ask(RecordType::A) {
                    Ok(mut addresses) => {
                        // The first answer is enough to go on with.
                        addresses.extend(ask(RecordType::AAAA).unwrap_or_default());
                        return Ok(addresses);
                    }
                    Err(error) => last = error,
                }
            }
        }
        Err(last)
    }
}

/// Asks one server for one kind of record; by TCP when the answer does not fit.
fn exchange(server: SocketAddr, name: &Name, kind: RecordType) -> Result<Vec<IpAddr>> {
    let mut message = Message::query();
    message.metadata.op_code = OpCode::Query;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    let what = || format!("name server {}", server.ip());
    let bytes = message.to_vec().map_err(|error| Error::new(error.to_string())).context(what)?;
    let mut answer = by_udp(server, &bytes, &message).context(what)?;
    if answer.metadata.truncation {
        answer = by_tcp(server, &bytes).context(what)?;
        if !answers(&answer, &message) {
            return Err(Error::new("the answer is not of this question")).context(what);
        }
    }
    match answer.metadata.response_code {
        ResponseCode::NoError | ResponseCode::NXDomain => {}
        other => return Err(Error::new(format!("it refuses: {other}"))).context(what),
    }
    let address = |data: &RData| match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    };
    Ok(answer.answers.iter().filter_map(|record| address(&record.data)).collect())
}

fn answers(answer: &Message, question: &Message) -> bool {
    answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && answer.queries == question.queries
}

fn by_udp(server: SocketAddr, bytes: &[u8], question: &Message) -> Result<Message> {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0; 16], 0).into() };
    // A connected socket takes answers from that server only.
    let socket = UdpSocket::bind(any)?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    socket.send(bytes)?;
    let mut buffer = [0; 4096];
    loop {
        let count = socket.recv(&mut buffer)?;
        let answer = Message::from_vec(buffer.get(..count).unwrap_or_default());
        // What is malformed, or of another question, is not what was waited for.
        if let Some(answer) = answer.ok().filter(|answer| answers(answer, question)) {
            return Ok(answer);
        }
    }
}

fn by_tcp(server: SocketAddr, bytes: &[u8]) -> Result<Message> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let length = u16::try_from(bytes.len()).map_err(|_| Error::new("the question is too long"))?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(bytes)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Message::from_vec(&answer).map_err(|error| Error::new(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_configuration() {
        let hosts = "127.0.0.1 localhost\n::1 localhost ip6\n10.0.0.7\treg.example Reg # other\n";
        assert_eq!(in_hosts(hosts, "LOCALHOST").len(), 2);
        assert_eq!(in_hosts(hosts, "reg"), [IpAddr::from([10, 0, 0, 7])]);
        assert!(in_hosts(hosts, "other").is_empty());
        let configuration = Configuration::parse(
            "# x\nnameserver 10.0.0.1\nnameserver ::1\nsearch a.b c\noptions ndots:2 rotate\n",
        );
        assert_eq!(configuration.servers.len(), 2);
        assert_eq!(configuration.candidates("x.y"), ["x.y.a.b.", "x.y.c.", "x.y."]);
        assert_eq!(configuration.candidates("x.y.z")[0], "x.y.z.");
        assert_eq!(configuration.candidates("x."), ["x."]);
    }

    /// A name server of our own: what it is asked is what it answers.
    #[test]
    fn an_answer_of_the_right_question_is_taken() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let server = socket.local_addr().unwrap();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            let (count, from) = socket.recv_from(&mut buffer).unwrap();
            let question = Message::from_vec(&buffer[..count]).unwrap();
            let name = question.queries[0].name().clone();
            let mut answer = Message::response(question.metadata.id.wrapping_add(1), OpCode::Query);
            answer.add_query(question.queries[0].clone());
            let record = |last| {
                let data = RData::A(hickory_proto::rr::rdata::A::new(10, 0, 0, last));
                hickory_proto::rr::Record::from_rdata(name.clone(), 60, data)
            };
            answer.add_answer(record(66));
            socket.send_to(b"nonsense", from).unwrap();
            socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
            answer.metadata.id = question.metadata.id;
            answer.answers = vec![record(7)];
            socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
        });
        let name = Name::from_ascii("registry.example.").unwrap();
        let addresses = exchange(server, &name, RecordType::A).unwrap();
        thread.join().unwrap();
        assert_eq!(addresses, [IpAddr::from([10, 0, 0, 7])]);
    }
}
