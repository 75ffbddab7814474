//! `moat network ...`.

use serde_json::Value;

use moat_tests::NetworkHost as Host;

#[test]
fn networks_come_and_go() {
    let host = Host::new();
    let id = host.moat(
        "network create --label tier=back --subnet 10.66.0.0/24 -o com.docker.network.driver.mtu=1400 blue",
    );
    assert_eq!(id.len(), 64);
    let list = host.moat("network ls");
    assert!(list.starts_with("NETWORK ID     NAME      DRIVER    SCOPE\n"), "{list}");
    assert_eq!(
        host.moat("network ls --format {{.Name}}:{{.Driver}}"),
        "blue:bridge\nbridge:bridge\nhost:host\nnone:null"
    );
    for (filter, names) in [
        ("label=tier=back", "blue"),
        ("type=custom", "blue"),
        ("driver=null", "none"),
        ("name=bri", "bridge"),
        ("dangling=true", "blue"),
        ("scope=swarm", ""),
    ] {
        assert_eq!(
            host.moat(&format!("network ls --filter {filter} --format {{{{.Name}}}}")),
            names,
            "{filter}"
        );
    }
    assert_eq!(host.moat("network ls -q --no-trunc --filter name=blue"), id);
    let document: Value = serde_json::from_str(&host.moat("network inspect blue")).unwrap();
    assert_eq!(document[0]["IPAM"]["Config"][0]["Subnet"], "10.66.0.0/24");
    assert_eq!(document[0]["IPAM"]["Config"][0]["Gateway"], "10.66.0.1");
    assert_eq!(document[0]["Labels"]["tier"], "back");
    host.start("one", "--network blue");
    assert!(host.moat("exec one ip link show eth0").contains("mtu 1400"));
    let document: Value = serde_json::from_str(&host.moat(&format!("inspect {}", &id[..12]))).unwrap();
    let members = document[0]["Containers"].as_object().unwrap();
    assert_eq!(members.values().next().unwrap()["Name"], "one");
    assert_eq!(members.values().next().unwrap()["IPv4Address"], "10.66.0.2/24");
    assert_eq!(host.moat("network inspect -f {{.Driver}} host none bridge"), "host\nnull\nbridge");
    // What a workload uses, even one that does not run, is not pruned.
    host.moat("network create idle");
    host.moat("stop -t 0 one");
    assert_eq!(host.moat("network prune -f"), "Deleted Networks:\nidle");
    host.moat("network create idle");
    assert!(
        host.moat("system prune -f").contains("Deleted Networks:\nblue\nidle"),
        "the workload goes first"
    );
    assert_eq!(host.moat("network ls --filter type=custom -q"), "");
    let events = host.moat("events --since 1h --until 0s --filter type=network --format {{.Action}}");
    assert!(events.starts_with("create\ncreate\ndestroy\n"), "{events}");
}

#[test]
fn what_is_refused() {
    let host = Host::new();
    host.moat("network create --subnet 10.66.0.0/24 blue");
    for (line, said) in [
        ("network create blue", "a network named blue exists already"),
        ("network create -d macvlan m", "the driver macvlan is not supported yet"),
        ("network create -d ipvlan m", "the driver ipvlan is not supported yet"),
        ("network create -d overlay m", "there is no network driver \"overlay\""),
        ("network create --subnet 10.66.0.128/25 m", "10.66.0.128/25 overlaps 10.66.0.0/24 of network blue"),
        ("network create -o a=b m", "the driver bridge has no option a"),
        ("network create host", "names a network that is always there"),
        ("network create --gateway 10.1.1.1 m", "--gateway 10.1.1.1 lies in no --subnet"),
        ("network create --aux-address a=10.1.1.1 m", "addresses cannot be set aside"),
        ("network rm bridge", "the default network can not be removed"),
        ("network rm host", "network host is always there"),
        ("network rm nobody", "there is no network nobody"),
        ("network inspect nobody", "there is no network nobody"),
        ("network connect blue nobody", "workload \"nobody\" does not exist"),
        ("run --rm --network nobody busybox true", "there is no network nobody"),
        ("run --rm --network host -p 80:80 busybox true", "ports can not be published in network mode host"),
    ] {
        let refused = host.refused(line);
        assert!(refused.contains(said), "{line}: {refused}");
    }
    host.moat("network rm -f nobody");
    assert_eq!(host.moat("ps -aq"), "");
}

#[test]
fn the_way_of_a_packet() {
    let host = Host::new();
    let one = host.start("one", "-p 8080:80");
    let _server = one.serve("tcp", "0.0.0.0", 80);
    host.outside().ask("tcp", moat_tests::HOST, 8080).unwrap();
    let drawn = host.moat("network inspect --explain one bridge");
    for part in
        ["eth0", "moat0", "moatv", "inet forward", "published: 0.0.0.0:8080/tcp -> ", "up0", "packets"]
    {
        assert!(drawn.contains(part), "{part}: {drawn}");
    }
    host.moat("network create blue");
    assert!(host.refused("network inspect --explain one blue").contains("is not on network blue"));
}
