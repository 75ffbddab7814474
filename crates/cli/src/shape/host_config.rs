//! What was asked of the host: Docker's HostConfig.

use moat_model::workload::{
    DeviceLimit, Isolation, MountSource, NamespaceMode, NetworkMode, RestartPolicy, SeccompChoice,
    WorkloadSpec,
};
use serde_json::{Value, json};

use super::{Document, list_or_null, object, texts};

/// The document.
pub(crate) fn host_config(spec: &WorkloadSpec) -> Document {
    let limits = &spec.limits;
    let number = |value: Option<u64>| value.unwrap_or(0);
    object! {
        "Binds": binds(spec),
        "LogConfig": log(spec),
        "NetworkMode": network_mode(&spec.network.mode, spec),
        "PortBindings": port_bindings(spec),
        "RestartPolicy": restart_policy(spec.restart),
        "AutoRemove": spec.auto_remove,
        "VolumesFrom": list_or_null(spec.volumes_from.clone()),
        "CapAdd": list_or_null(spec.cap_add.clone()),
        "CapDrop": list_or_null(spec.cap_drop.clone()),
        "CgroupnsMode": namespace(&spec.cgroupns, "private"),
        "Dns": list_or_null(spec.network.dns.iter().map(ToString::to_string)),
        "DnsOptions": list_or_null(spec.network.dns_options.clone()),
        "DnsSearch": list_or_null(spec.network.dns_search.clone()),
        "ExtraHosts": list_or_null(spec.network.add_hosts.clone()),
        "GroupAdd": list_or_null(spec.group_add.clone()),
        "IpcMode": namespace(&spec.ipc, "private"),
        "OomScoreAdj": limits.oom_score_adj.unwrap_or(0),
        "PidMode": namespace(&spec.pid, ""),
        "Privileged": spec.privileged,
        "PublishAllPorts": spec.network.publish_all,
        "ReadonlyRootfs": spec.read_only,
        "SecurityOpt": security(spec),
        "UTSMode": namespace(&spec.uts, ""),
        "UsernsMode": spec.userns.clone().unwrap_or_default(),
        "ShmSize": spec.shm_bytes.unwrap_or(64 << 20),
        "Sysctls": if spec.sysctls.is_empty() { Value::Null } else { texts(&spec.sysctls) },
        "Runtime": "moat",
        "Isolation": if spec.isolation == Isolation::Microvm { "microvm" } else { "container" },
        "CpuShares": number(limits.cpu_shares),
        "Memory": number(limits.memory_bytes),
        "NanoCpus": number(limits.nano_cpus),
        "CgroupParent": spec.cgroup_parent.clone().unwrap_or_default(),
        "BlkioWeight": limits.blkio_weight.unwrap_or(0),
        "BlkioWeightDevice": devices(&limits.blkio_weight_device, "Weight"),
        "BlkioDeviceReadBps": devices(&limits.device_read_bps, "Rate"),
        "BlkioDeviceWriteBps": devices(&limits.device_write_bps, "Rate"),
        "BlkioDeviceReadIOps": devices(&limits.device_read_iops, "Rate"),
        "BlkioDeviceWriteIOps": devices(&limits.device_write_iops, "Rate"),
        "CpuPeriod": number(limits.cpu_period_us),
        "CpuQuota": limits.cpu_quota_us.unwrap_or(0),
        "CpuRealtimePeriod": number(limits.cpu_rt_period_us),
        "CpuRealtimeRuntime": limits.cpu_rt_runtime_us.unwrap_or(0),
        "CpusetCpus": limits.cpuset_cpus.clone().unwrap_or_default(),
        "CpusetMems": limits.cpuset_mems.clone().unwrap_or_default(),
        "Devices": list_or_null(spec.devices.iter().map(|device| {
            json!({"PathOnHost": device.host, "PathInContainer": device.path, "CgroupPermissions": device.access})
        })),
        "DeviceCgroupRules": list_or_null(spec.device_cgroup_rules.clone()),
        "MemoryReservation": number(limits.memory_reservation_bytes),
        "MemorySwap": limits.memory_swap_bytes.unwrap_or(0),
        "MemorySwappiness": limits.memory_swappiness.map_or(Value::Null, Value::from),
        "OomKillDisable": limits.oom_kill_disable,
        "Init": spec.init,
        "PidsLimit": limits.pids.map_or(Value::Null, Value::from),
        "Ulimits": list_or_null(limits.ulimits.iter().map(|limit| {
            json!({"Name": limit.name, "Soft": unlimited(limit.soft), "Hard": unlimited(limit.hard)})
        })),
        "Tmpfs": tmpfs(spec),
        "StorageOpt": spec.root_bytes.map_or(Value::Null, |bytes| json!({"size": bytes.to_string()})),
    }
}

/// Docker's -1.
fn unlimited(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(-1)
}

fn binds(spec: &WorkloadSpec) -> Value {
    list_or_null(spec.mounts.iter().filter_map(|mount| {
        let source = match &mount.source {
            MountSource::Bind { path, .. } => path,
            MountSource::Volume { name: Some(name), .. } => name,
            _ => return None,
        };
        let mode = if mount.read_only { ":ro" } else { "" };
        Some(format!("{source}:{}{mode}", mount.target))
    }))
}

fn tmpfs(spec: &WorkloadSpec) -> Value {
    let map: serde_json::Map<String, Value> = spec
        .mounts
        .iter()
        .filter_map(|mount| {
            let MountSource::Tmpfs { size_bytes, mode, options } = &mount.source else { return None };
            let size = size_bytes.map(|bytes| format!("size={bytes}"));
            let mode = mode.map(|mode| format!("mode={mode:o}"));
            let words: Vec<String> = size.into_iter().chain(mode).chain(options.clone()).collect();
            Some((mount.target.clone(), Value::from(words.join(","))))
        })
        .collect();
    if map.is_empty() { Value::Null } else { Value::Object(map) }
}

fn log(spec: &WorkloadSpec) -> Value {
    match spec.log.keep {
        true => json!({"Type": "json-file", "Config": {
            "max-size": spec.log.max_bytes.to_string(), "max-file": spec.log.max_files.to_string()}}),
        false => json!({"Type": "none", "Config": {}}),
    }
}

/// The mode of the network in Docker's words.
pub(crate) fn network_mode(mode: &NetworkMode, spec: &WorkloadSpec) -> String {
    match (mode, spec.network.endpoints.first()) {
        (NetworkMode::Bridge, Some(endpoint)) => endpoint.network.clone(),
        (NetworkMode::Bridge, None) => "bridge".to_owned(),
        (NetworkMode::Host, _) => "host".to_owned(),
        (NetworkMode::None, _) => "none".to_owned(),
        (NetworkMode::Container(name), _) => format!("container:{name}"),
        (NetworkMode::Path(path), _) => format!("ns:{path}"),
    }
}

fn namespace(mode: &NamespaceMode, private: &str) -> String {
    match mode {
        NamespaceMode::Private => private.to_owned(),
        NamespaceMode::Host => "host".to_owned(),
        NamespaceMode::Container(name) => format!("container:{name}"),
    }
}

fn port_bindings(spec: &WorkloadSpec) -> Value {
    let mut map = serde_json::Map::new();
    for wish in &spec.network.ports {
        for (at, port) in (wish.ports.0..=wish.ports.1).enumerate() {
            let host =
                wish.host_ports.map_or(String::new(), |(first, _)| (usize::from(first) + at).to_string());
            let ip = wish.host_ip.map_or(String::new(), |ip| ip.to_string());
            let place = map
                .entry(format!("{port}/{}", wish.protocol.name()))
                .or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(places) = place {
                places.push(json!({"HostIp": ip, "HostPort": host}));
            }
        }
    }
    Value::Object(map)
}

fn restart_policy(policy: RestartPolicy) -> Value {
    let (name, times) = match policy {
        RestartPolicy::No => ("no", 0),
        RestartPolicy::Always => ("always", 0),
        RestartPolicy::UnlessStopped => ("unless-stopped", 0),
        RestartPolicy::OnFailure { max_retries } => ("on-failure", max_retries),
    };
    json!({"Name": name, "MaximumRetryCount": times})
}

fn security(spec: &WorkloadSpec) -> Value {
    let security = &spec.security;
    let seccomp = match &security.seccomp {
        SeccompChoice::Default => None,
        SeccompChoice::Unconfined => Some("seccomp=unconfined".to_owned()),
        SeccompChoice::Profile(text) => Some(format!("seccomp={text}")),
    };
    let privileges = security.no_new_privileges.then(|| "no-new-privileges".to_owned());
    let apparmor = security.apparmor.as_ref().map(|profile| format!("apparmor={profile}"));
    let labels = security.label.iter().map(|part| format!("label={part}"));
    let masks = security.unmask_paths.then(|| "systempaths=unconfined".to_owned());
    list_or_null(privileges.into_iter().chain(seccomp).chain(apparmor).chain(labels).chain(masks))
}

fn devices(limits: &[DeviceLimit], what: &str) -> Value {
    list_or_null(limits.iter().map(|limit| json!({"Path": limit.path, what: limit.value})))
}
