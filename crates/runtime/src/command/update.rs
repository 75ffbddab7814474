//! `update`.

use std::io::Read;
use std::path::Path;

use moat_model::oci::{BlockIo, Cpu, Memory, Pids, Resources};
use moat_sandbox::{Context, Error, Result, change};

use super::{Session, container_id, units};
use crate::cli::UpdateArgs;

pub(crate) fn update(session: &Session<'_>, args: &UpdateArgs) -> Result<u8> {
    let id = container_id(&args.id)?;
    for (flag, given) in
        [("--l3-cache-schema", &args.l3_cache_schema), ("--mem-bw-schema", &args.mem_bw_schema)]
    {
        if given.is_some() {
            return Err(Error::new(format!("{flag} is not supported yet: Moat does not control Intel RDT")));
        }
    }
    if args.kernel_memory.is_some() || args.kernel_memory_tcp.is_some() {
        session.log.warn("kernel memory limits have no effect and are left out");
    }
    let resources = match &args.resources {
        // As with runc: whoever gives a file gives all.
        Some(path) => read(path)?,
        None => from_flags(args)?,
    };
    change::update(&session.store, &id, &resources)?;
    Ok(0)
}

fn read(path: &Path) -> Result<Resources> {
    let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let mut text = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().read_to_end(&mut text).context(|| name.clone())?;
    } else {
        text = std::fs::read(path).context(|| name.clone())?;
    }
    serde_json::from_slice(&text).map_err(|error| Error::new(format!("{name}: {error}")))
}

fn from_flags(args: &UpdateArgs) -> Result<Resources> {
    let size = |flag: &str, text: &Option<String>| {
        text.as_deref().filter(|text| !text.is_empty()).map(|text| units::bytes(flag, text)).transpose()
    };
    let memory = Memory {
        limit_bytes: size("--memory", &args.memory)?,
        reservation_bytes: size("--memory-reservation", &args.memory_reservation)?,
        swap_bytes: size("--memory-swap", &args.memory_swap)?,
        ..Memory::default()
    };
    let cpu = Cpu {
        shares: args.cpu_share,
        quota_us: args.cpu_quota,
        burst_us: args.cpu_burst,
        period_us: args.cpu_period,
        realtime_runtime_us: args.cpu_rt_runtime,
        realtime_period_us: args.cpu_rt_period,
        cpus: args.cpuset_cpus.clone().unwrap_or_default(),
        mems: args.cpuset_mems.clone().unwrap_or_default(),
        idle: args.cpu_idle,
    };
    let weight = args.blkio_weight.filter(|weight| *weight != 0);
    let limit = args.pids_limit.filter(|limit| *limit != 0);
    Ok(Resources {
        memory: (memory != Memory::default()).then_some(memory),
        cpu: (cpu != Cpu::default()).then_some(cpu),
        pids: limit.map(|limit| Pids { limit: Some(limit) }),
        block_io: weight.map(|weight| BlockIo { weight: Some(weight), ..BlockIo::default() }),
        ..Resources::default()
    })
}
