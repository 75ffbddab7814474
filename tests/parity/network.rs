//! A workload, a container beside it, the host, and the outside.

use moat_tests::{HOST, OUTSIDE, Place};

use crate::house::{House, refusal, yes};
use crate::{Case, Group, case};

pub(crate) const GROUP: Group = Group { title: "Networks", before, cases: CASES };

const SERVE: &str = "while :; do echo from $0 | nc -l -p 80; done";

fn before(house: &House) {
    house.say("network create blue");
    house.say("network create --internal dark");
    let peer = ["run", "-d", "--name", "peer", "--network", "blue", "busybox", "sh", "-c", SERVE, "peer"];
    house.moat.call(&peer).success();
    let flags = "-d --name one --network blue --network-alias uno -p 8080:80 --mac-address 02:00:00:00:00:77 \
        --add-host db:10.9.8.7 --dns-search example.org busybox sh -c";
    let args: Vec<&str> = flags.split_whitespace().chain([SERVE, "one"]).collect();
    house.on_networks("run", &args).success();
    let two = ["-d", "--name", "two", "--network", "blue", "busybox", "sh", "-c", SERVE, "two"];
    house.on_networks("run", &two).success();
}

fn ask(place: &Place, address: &str, port: &str) -> String {
    let output = place.run("busybox", &["nc", "-w", "10", address, port]);
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn on(house: &House, name: &str, field: &str) -> String {
    house.inspect(name, &format!("NetworkSettings.Networks.blue.{field}"))
}

const CASES: &[Case] = &[
    case("it reaches a container by name", "from peer", |house| house.exec("one", "nc peer 80 </dev/null")),
    case("a container reaches it by name", "from one", |house| house.exec("peer", "nc one 80 </dev/null")),
    case("by `--network-alias`", "from one", |house| house.exec("peer", "nc uno 80 </dev/null")),
    case("two of its kind, by name", "from two", |house| house.exec("one", "nc two 80 </dev/null")),
    case("by the beginning of its id", "from two", |house| {
        let id = house.inspect("two", "Id");
        house.exec("one", &format!("nc {} 80 </dev/null", &id[..12]))
    }),
    case("the address, the name", "yes", |house| {
        let found = house.exec("one", &format!("nslookup {}", on(house, "peer", "IPAddress")));
        yes(found.contains("name = peer"))
    }),
    case("`--publish`: from the host, by loopback", "from one", |house| {
        let _ = house;
        ask(&Place::host(), "127.0.0.1", "8080")
    }),
    case("`--publish`: from the host, by its address", "from one", |house| {
        let _ = house;
        ask(&Place::host(), HOST, "8080")
    }),
    case("`--publish`: from outside", "from one", |house| ask(&house.outside(), HOST, "8080")),
    case("`port`", "80/tcp -> 0.0.0.0:8080", |house| house.say("port one")),
    case("a port that is taken", "125", |house| {
        house.on_networks("run", &["--rm", "-p", "8080:80", "busybox", "true"]).code.to_string()
    }),
    case("`inspect`: its address", "yes", |house| {
        yes(house
            .exec("one", "ip -4 addr show eth0")
            .contains(&format!("inet {}/16", on(house, "one", "IPAddress"))))
    }),
    case("`--mac-address`", "02:00:00:00:00:77", |house| {
        house.exec("one", "cat /sys/class/net/eth0/address")
    }),
    case("the way out", "yes", |house| {
        yes(house.exec("one", "ip route").contains(&format!("default via {}", on(house, "one", "Gateway"))))
    }),
    case("it reaches the outside", "1 packets received", |house| {
        let said = house.exec("one", &format!("ping -c 1 {OUTSIDE}"));
        said.split(", ").find(|part| part.ends_with("received")).unwrap_or_default().to_owned()
    }),
    case("/etc/hosts: its own name", "yes", |house| {
        yes(house.exec("one", "cat /etc/hosts").contains(&on(house, "one", "IPAddress")))
    }),
    case("`--add-host`", "10.9.8.7\tdb", |house| house.exec("one", "grep db /etc/hosts")),
    case("`--dns-search`", "search example.org", |house| house.exec("one", "grep search /etc/resolv.conf")),
    case("the resolver of its network", "yes", |house| {
        yes(house.exec("one", "cat /etc/resolv.conf").contains(&on(house, "one", "Gateway")))
    }),
    case("`stats`: what was sent and received", "yes", |house| {
        let text = house.say("stats --no-stream --format {{.NetIO}} one");
        yes(!text.starts_with("0B") && !text.ends_with(" 0B"))
    }),
    case("`network inspect` lists it", "yes", |house| {
        yes(house.say("network inspect blue").contains("\"one\""))
    }),
    case("`rename`: the new name", "from two", |house| {
        house.say("rename two zwei");
        let said = house.exec("peer", "nc zwei 80 </dev/null");
        house.say("rename zwei two");
        said
    }),
    case("`network connect` while it runs", "0", |house| {
        refusal(&house.moat.call(&["network", "connect", "dark", "two"])).trim_end_matches(": ").to_owned()
    })
    .differs("it can join no network while it runs", "a machine gets its network cards when it is made"),
    case("`network disconnect` while it runs", "gone", |house| {
        house.say("network disconnect blue two");
        if house.exec("peer", "nslookup two").contains("answer:") { "there" } else { "gone" }.to_owned()
    }),
    case("a network that leads nowhere", "Network is unreachable", |house| {
        let done =
            house.on_networks("run", &["--rm", "--network", "dark", "busybox", "ping", "-c", "1", OUTSIDE]);
        done.stderr.trim().rsplit(": ").next().unwrap_or_default().to_owned()
    }),
    case("the port goes with it", "", |house| {
        house.say("rm -f one");
        ask(&Place::host(), "127.0.0.1", "8080")
    }),
    case("networks can be removed then", "0 0", |house| {
        house.clear();
        format!("{} {}", house.code("network rm blue"), house.code("network rm dark"))
    }),
];
