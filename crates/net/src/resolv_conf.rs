//! /etc/resolv.conf of the host, resolv.conf(5): whom a resolver asks what it does not know itself.

use std::net::IpAddr;

/// The host's name servers.
pub(crate) fn servers_of_host() -> Vec<IpAddr> {
    servers(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
}

/// Reads what it can; what it does not know it leaves out, as the C library does.
fn servers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            // The scope of a link-local address means nothing to others, so those are left out, too.
            (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_server_is_left_out() {
        let text = "# mine\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver ::1 ; own\n\
                    domain a\nsearch b c\noptions ndots:2 rotate\nsortlist x\n";
        assert_eq!(servers(text), ["192.0.2.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]);
    }
}
