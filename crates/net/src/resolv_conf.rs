//! /etc/resolv.conf of a workload, resolv.conf(5).

use std::net::IpAddr;

use moat_model::workload::NetworkingSpec;

/// What a resolv.conf says that matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResolvConf {
    pub(crate) servers: Vec<IpAddr>,
    pub(crate) search: Vec<String>,
    pub(crate) options: Vec<String>,
}

impl ResolvConf {
    /// The host's own.
    pub(crate) fn of_host() -> Self {
        Self::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
    }

    /// Reads what it can; what it does not know it leaves out, as the C library does.
    pub(crate) fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    // The scope of a link-local address means nothing elsewhere.
                    found.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok()));
                }
                Some("search" | "domain") => found.search = words.map(str::to_owned).collect(),
                Some("options") => found.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        found
    }

    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for server in &self.servers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.search.is_empty() {
            text.push_str(&format!("search {}\n", self.search.join(" ")));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// The text for a workload; `own` is the resolver of its network, where it has one.
pub(crate) fn for_workload(spec: &NetworkingSpec, own: Option<IpAddr>) -> String {
    let host = ResolvConf::of_host();
    let mut conf = ResolvConf {
        servers: match own {
            Some(own) => vec![own],
            None if spec.dns.is_empty() => host.servers,
            None => spec.dns.clone(),
        },
        // One dot alone says: no domain.
        search: match spec.dns_search.as_slice() {
            [] => host.search,
            [dot] if dot == "." => Vec::new(),
            given => given.to_vec(),
        },
        options: if spec.dns_options.is_empty() { host.options } else { spec.dns_options.clone() },
    };
    if own.is_some() && !conf.options.iter().any(|option| option.starts_with("ndots:")) {
        // Names of one word are what networks are for.
        conf.options.push("ndots:0".to_owned());
    }
    conf.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_is_written() {
        let text = "# mine\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver ::1 ; own\n\
                    domain a\nsearch b c\noptions ndots:2 rotate\nsortlist x\n";
        let conf = ResolvConf::parse(text);
        assert_eq!(conf.text(), "nameserver 192.0.2.1\nnameserver ::1\nsearch b c\noptions ndots:2 rotate\n");
    }

    #[test]
    fn the_users_words_come_first() {
        let spec = NetworkingSpec {
            dns: vec!["192.0.2.7".parse().unwrap()],
            dns_search: vec![".".to_owned()],
            dns_options: vec!["rotate".to_owned()],
            ..NetworkingSpec::default()
        };
        assert_eq!(for_workload(&spec, None), "nameserver 192.0.2.7\noptions rotate\n");
        let own = for_workload(&spec, Some("172.17.0.1".parse().unwrap()));
        assert_eq!(own, "nameserver 172.17.0.1\noptions rotate ndots:0\n");
    }
}
