//! The flags that `run` and `create` share, and how they become a [`WorkloadSpec`].
//!
//! Names, short forms and meanings are Docker's. A flag of Docker's that is not here is unknown to clap and
//! refused by it; one that people do use and that is refused for a reason stands here hidden, and says why.

use std::path::PathBuf;

use clap::Args;
use moat_model::workload::{
    DeviceLimit, DeviceSpec, HealthProbe, HealthSpec, Isolation, MountSpec, NamespaceMode, RestartPolicy,
    UlimitSpec, WorkloadSpec,
};

use super::limits::LimitFlags;
use super::network::NetworkFlags;
use super::{duration, environment, mount, namespace, security, size, ulimit, volume};

/// When an image is pulled before a workload is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Pull {
    /// Always, to see whether there is a newer one
    Always,
    /// When it is not there
    #[default]
    Missing,
    /// Never
    Never,
}

/// A stream of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Stream {
    Stdin,
    Stdout,
    Stderr,
}

/// The flags of `run` and `create`.
#[derive(Args, Debug)]
pub(crate) struct CreateFlags {
    /// Image, then the command in place of the image's
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE [COMMAND] [ARG...]")]
    image: Vec<String>,

    /// Name of the workload
    #[arg(long)]
    name: Option<String>,
    /// Wall around it: container or microvm
    #[arg(long, value_name = "WALL", value_parser = super::isolation, default_value = "container")]
    isolation: Isolation,
    /// os/arch[/variant] of the image
    #[arg(long)]
    platform: Option<String>,
    /// When to pull the image
    #[arg(long, value_enum, default_value = "missing")]
    pub(crate) pull: Pull,
    /// Do not show the pull
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print the steps that it would take, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// File for the id
    #[arg(long, value_name = "FILE")]
    pub(crate) cidfile: Option<PathBuf>,
    /// Remove the workload and its anonymous volumes when it has ended
    #[arg(long)]
    rm: bool,
    /// When to start it again: no, always, unless-stopped, on-failure[:TIMES]
    #[arg(long, value_name = "POLICY", value_parser = super::restart)]
    restart: Option<RestartPolicy>,
    /// Signal that asks it to end
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds that stop waits before it kills
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<u64>,

    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Attach to stdin, stdout or stderr
    #[arg(short, long, value_enum, ignore_case = true, value_name = "STREAM")]
    pub(crate) attach: Vec<Stream>,
    /// Program in place of the image's entry point
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Variable, as NAME=VALUE; a name alone takes the caller's
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = environment::variable)]
    env: Vec<String>,
    /// File of variables
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Working directory
    #[arg(short, long, value_name = "PATH", value_parser = workdir)]
    workdir: Option<String>,
    /// User, as USER[:GROUP], names or numbers
    #[arg(short, long)]
    user: Option<String>,
    /// Further group
    #[arg(long, value_name = "GROUP")]
    group_add: Vec<String>,
    /// Label, as NAME=VALUE
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = super::pair)]
    label: Vec<(String, String)>,
    /// File of labels
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// Annotation for the OCI configuration
    #[arg(long, value_name = "NAME=VALUE", value_parser = super::pair)]
    annotation: Vec<(String, String)>,
    /// Run an init as PID 1
    #[arg(long)]
    init: bool,
    /// Host name
    #[arg(short = 'h', long)]
    hostname: Option<String>,
    /// NIS domain name
    #[arg(long)]
    domainname: Option<String>,
    /// Kernel parameter of its namespaces
    #[arg(long, value_name = "NAME=VALUE", value_parser = super::assignment)]
    sysctl: Vec<(String, String)>,

    /// All privileges
    #[arg(long)]
    privileged: bool,
    /// Add a capability
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Drop a capability
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// no-new-privileges, seccomp=..., apparmor=..., label=..., systempaths=unconfined
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Read-only root file system
    #[arg(long)]
    read_only: bool,
    /// User namespace: host, auto or maps
    #[arg(long, value_name = "MODE", value_parser = namespace::user)]
    userns: Option<String>,
    /// PID namespace: private, host or container:NAME
    #[arg(long, value_name = "MODE", value_parser = namespace::joinable)]
    pid: Option<NamespaceMode>,
    /// IPC namespace: private, host or container:NAME
    #[arg(long, value_name = "MODE", value_parser = namespace::ipc)]
    ipc: Option<NamespaceMode>,
    /// UTS namespace: private, host or container:NAME
    #[arg(long, value_name = "MODE", value_parser = namespace::joinable)]
    uts: Option<NamespaceMode>,
    /// Control group namespace: private or host
    #[arg(long, value_name = "MODE", value_parser = namespace::cgroup)]
    cgroupns: Option<NamespaceMode>,
    /// Control group above its own
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,

    /// Volume or path of the host, as [SOURCE:]TARGET[:OPTIONS]
    #[arg(short, long, value_name = "VOLUME", value_parser = volume::volume)]
    volume: Vec<MountSpec>,
    /// Mount, as type=volume,source=NAME,target=PATH
    #[arg(long, value_name = "MOUNT", value_parser = mount::mount)]
    mount: Vec<MountSpec>,
    /// File system in memory, as PATH[:OPTIONS]
    #[arg(long, value_name = "PATH", value_parser = volume::tmpfs)]
    tmpfs: Vec<MountSpec>,
    /// Mounts of another workload, as NAME[:ro]
    #[arg(long, value_name = "WORKLOAD")]
    volumes_from: Vec<String>,
    /// Device of the host, as HOST[:PATH][:rwm]
    #[arg(long, value_name = "DEVICE", value_parser = super::device)]
    device: Vec<DeviceSpec>,
    /// Rule of the device control group
    #[arg(long, value_name = "RULE")]
    device_cgroup_rule: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "BYTES", value_parser = size::parse)]
    shm_size: Option<u64>,
    /// Option of the storage: size=BYTES
    #[arg(long, value_name = "NAME=VALUE", value_parser = super::assignment)]
    storage_opt: Vec<(String, String)>,

    #[command(flatten)]
    network: NetworkFlags,
    #[command(flatten)]
    limits: LimitFlags,
    /// Tendency to use swap, 0 to 100
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true, value_parser = clap::value_parser!(i64).range(-1..=100))]
    memory_swappiness: Option<i64>,
    /// Let it hang when its memory runs out
    #[arg(long)]
    oom_kill_disable: bool,
    /// Preference when memory runs out, -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    oom_score_adj: Option<i32>,
    /// Weight of a device, as DEVICE:WEIGHT
    #[arg(long, value_name = "DEVICE:WEIGHT", value_parser = ulimit::device_weight)]
    blkio_weight_device: Vec<DeviceLimit>,
    /// Bytes a second from a device
    #[arg(long, value_name = "DEVICE:BYTES", value_parser = ulimit::rate)]
    device_read_bps: Vec<DeviceLimit>,
    /// Bytes a second to a device
    #[arg(long, value_name = "DEVICE:BYTES", value_parser = ulimit::rate)]
    device_write_bps: Vec<DeviceLimit>,
    /// Reads a second from a device
    #[arg(long, value_name = "DEVICE:NUMBER", value_parser = ulimit::operations)]
    device_read_iops: Vec<DeviceLimit>,
    /// Writes a second to a device
    #[arg(long, value_name = "DEVICE:NUMBER", value_parser = ulimit::operations)]
    device_write_iops: Vec<DeviceLimit>,
    /// Resource limit, as NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT", value_parser = ulimit::ulimit)]
    ulimit: Vec<UlimitSpec>,

    #[command(flatten)]
    health: HealthFlags,
    /// Where the output goes: json-file or none
    #[arg(long, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Option of the log: max-size=BYTES, max-file=NUMBER
    #[arg(long, value_name = "NAME=VALUE", value_parser = super::assignment)]
    log_opt: Vec<(String, String)>,

    /// Refused
    #[arg(long, hide = true, value_parser = super::refused("there is one runtime; --isolation chooses the wall"))]
    runtime: Option<String>,
    /// Refused
    #[arg(long, hide = true, value_parser = super::refused("GPUs are not supported; --device passes single devices"))]
    gpus: Option<String>,
    /// Refused
    #[arg(long, hide = true, value_parser = volume_driver)]
    volume_driver: Option<String>,
}

/// Health checks.
#[derive(Args, Debug, Default)]
struct HealthFlags {
    /// Line for its shell that tells whether it is healthy
    #[arg(long, value_name = "LINE")]
    health_cmd: Option<String>,
    /// HTTP request that tells it: PORT/PATH
    #[arg(long, value_name = "PORT/PATH", value_parser = http_probe, conflicts_with = "health_cmd")]
    health_http: Option<(u16, String)>,
    /// Port that accepts a connection when it is healthy
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), conflicts_with_all = ["health_cmd", "health_http"])]
    health_tcp: Option<u16>,
    /// Time between two checks
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_ms)]
    health_interval: Option<u64>,
    /// Time that a check may take
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_ms)]
    health_timeout: Option<u64>,
    /// Time after the start in which failures do not count
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_ms)]
    health_start_period: Option<u64>,
    /// Time between two checks within that time
    #[arg(long, value_name = "DURATION", value_parser = duration::parse_ms)]
    health_start_interval: Option<u64>,
    /// Failures in a row that make it unhealthy
    #[arg(long, value_name = "NUMBER")]
    health_retries: Option<u32>,
    /// No check, though the image has one
    #[arg(long)]
    no_healthcheck: bool,
}

fn volume_driver(text: &str) -> Result<String, String> {
    match text {
        "" | "local" => Ok(text.to_owned()),
        _ => Err("the only driver of volumes is local".to_owned()),
    }
}

fn workdir(text: &str) -> Result<String, String> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err(format!("{text:?} is not an absolute path")) }
}

/// `PORT[/PATH]`.
fn http_probe(text: &str) -> Result<(u16, String), String> {
    let (port, path) = text.split_once('/').unwrap_or((text, ""));
    match port.parse() {
        Ok(port) if port > 0 => Ok((port, format!("/{path}"))),
        _ => Err(format!("{port:?} is no port; write PORT/PATH, as in 8080/health")),
    }
}

impl HealthFlags {
    fn spec(self) -> Result<Option<HealthSpec>, String> {
        let probe = match (self.health_cmd, self.health_http, self.health_tcp) {
            (Some(line), ..) => HealthProbe::Shell { line },
            (_, Some((port, path)), _) => HealthProbe::Http { port, path },
            (.., Some(port)) => HealthProbe::Tcp { port },
            _ => HealthProbe::Image,
        };
        // 0 is "as the image says".
        let time = |ms: Option<u64>| ms.filter(|ms| *ms > 0);
        let spec = HealthSpec {
            probe,
            interval_ms: time(self.health_interval),
            timeout_ms: time(self.health_timeout),
            start_period_ms: time(self.health_start_period),
            start_interval_ms: time(self.health_start_interval),
            retries: self.health_retries.filter(|retries| *retries > 0),
        };
        let nothing = HealthSpec {
            probe: HealthProbe::Image,
            interval_ms: None,
            timeout_ms: None,
            start_period_ms: None,
            start_interval_ms: None,
            retries: None,
        };
        match (self.no_healthcheck, spec == nothing) {
            (false, true) => Ok(None),
            (false, false) => Ok(Some(spec)),
            (true, true) => Ok(Some(HealthSpec { probe: HealthProbe::None, ..nothing })),
            (true, false) => Err("--no-healthcheck excludes every --health-* flag".to_owned()),
        }
    }
}

impl CreateFlags {
    /// The image as it was written.
    pub(crate) fn image(&self) -> &str {
        self.image.first().map_or("", String::as_str)
    }

    /// The platform that was asked for.
    pub(crate) fn platform(&self) -> Option<&str> {
        self.platform.as_deref()
    }

    /// The wish of all flags together. `attached` says whether the caller stays attached to standard input.
    pub(crate) fn spec(self, attached: bool) -> Result<WorkloadSpec, String> {
        let mut words = self.image.into_iter();
        let image = words.next().unwrap_or_default();
        let restart = self.restart.unwrap_or_default();
        if self.rm && restart != RestartPolicy::No {
            return Err("--rm removes what --restart would start again; give one of both".to_owned());
        }
        let mut labels = Vec::new();
        for path in &self.label_file {
            labels.extend(environment::labels_of(path).map_err(|error| format!("--label-file: {error}"))?);
        }
        labels.extend(self.label);
        let mut env = Vec::new();
        for path in &self.env_file {
            env.extend(environment::variables_of(path).map_err(|error| format!("--env-file: {error}"))?);
        }
        env.extend(self.env);
        let mut limits = self.limits.spec()?;
        limits.memory_swappiness = self.memory_swappiness.and_then(|value| u64::try_from(value).ok());
        limits.oom_kill_disable = self.oom_kill_disable;
        limits.oom_score_adj = self.oom_score_adj;
        limits.blkio_weight_device = self.blkio_weight_device;
        limits.device_read_bps = self.device_read_bps;
        limits.device_write_bps = self.device_write_bps;
        limits.device_read_iops = self.device_read_iops;
        limits.device_write_iops = self.device_write_iops;
        limits.ulimits = self.ulimit;
        let mounts: Vec<MountSpec> = self.volume.into_iter().chain(self.mount).chain(self.tmpfs).collect();
        distinct_targets(&mounts)?;
        Ok(WorkloadSpec {
            name: self.name,
            image,
            platform: self.platform,
            isolation: self.isolation,
            command: words.collect(),
            entrypoint: self.entrypoint.map(|program| match program.as_str() {
                "" => Vec::new(),
                _ => vec![program],
            }),
            env,
            workdir: self.workdir,
            user: self.user,
            group_add: self.group_add,
            labels: labels.into_iter().collect(),
            annotations: self.annotation.into_iter().collect(),
            tty: self.tty,
            open_stdin: self.interactive,
            stdin_once: self.interactive && attached,
            init: self.init,
            auto_remove: self.rm,
            restart,
            stop_signal: self.stop_signal,
            stop_timeout_s: self.stop_timeout,
            health: self.health.spec()?,
            log: security::log(self.log_driver.as_deref(), &self.log_opt)?,
            privileged: self.privileged,
            cap_add: self.cap_add,
            cap_drop: self.cap_drop,
            security: security::security(&self.security_opt)
                .map_err(|error| format!("--security-opt: {error}"))?,
            read_only: self.read_only,
            userns: self.userns,
            pid: self.pid.unwrap_or_default(),
            ipc: self.ipc.unwrap_or_default(),
            uts: self.uts.unwrap_or_default(),
            cgroupns: self.cgroupns.unwrap_or_default(),
            cgroup_parent: self.cgroup_parent,
            mounts,
            volumes_from: self.volumes_from,
            devices: self.device,
            device_cgroup_rules: self.device_cgroup_rule,
            shm_bytes: self.shm_size.filter(|bytes| *bytes > 0),
            root_bytes: security::storage(&self.storage_opt)?,
            hostname: self.hostname,
            domainname: self.domainname,
            network: self.network.spec()?,
            sysctls: self.sysctl.into_iter().collect(),
            limits,
        })
    }
}

/// Two mounts at one place would hide one another.
fn distinct_targets(mounts: &[MountSpec]) -> Result<(), String> {
    let clean = |mount: &MountSpec| {
        let parts = mount.target.split('/').filter(|part| !part.is_empty() && *part != ".");
        parts.map(str::to_owned).collect::<Vec<_>>()
    };
    for (at, mount) in mounts.iter().enumerate() {
        if mounts.iter().take(at).any(|other| clean(other) == clean(mount)) {
            return Err(format!("two mounts are to stand at {}", mount.target));
        }
    }
    Ok(())
}
