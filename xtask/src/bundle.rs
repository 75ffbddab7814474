//! OCI bundles with a static busybox, for the benchmark and the demonstration.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::command;

const APPLETS: &[&str] = &["cat", "echo", "hostname", "id", "ls", "mount", "ps", "sh", "sleep", "true"];

/// Makes a root file system of busybox and the empty folders that mounts go on.
pub(crate) fn rootfs(folder: &Path) -> Result<()> {
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp"] {
        let path = folder.join(name);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    let busybox = command::find("busybox").context("busybox is not in PATH")?;
    std::fs::copy(&busybox, folder.join("bin/busybox"))
        .with_context(|| format!("cannot copy {}", busybox.display()))?;
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", folder.join("bin").join(applet))
            .with_context(|| format!("cannot link {applet}"))?;
    }
    std::fs::write(folder.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n")
        .context("cannot write the bundle's passwd")
}

/// The configuration that a runtime's own `spec` command proposes.
pub(crate) fn default_config(runtime: &Path, scratch: &Path) -> Result<Value> {
    let folder = scratch.join("spec");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    command::quiet(Command::new(runtime).arg("spec").current_dir(&folder))?;
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))
}

/// Writes a bundle around a root file system that may be shared; returns its folder.
pub(crate) fn write(
    folder: PathBuf,
    rootfs: &Path,
    config: &Value,
    cgroup: &str,
    arguments: &[&str],
) -> Result<PathBuf> {
    let mut config = config.clone();
    config["root"]["path"] = json!(rootfs);
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(arguments);
    config["linux"]["cgroupsPath"] = json!(cgroup);
    add_cgroup_namespace(&mut config);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join("config.json");
    std::fs::write(&path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(folder)
}

/// On hosts with cgroup v1, `runc spec` leaves out the one namespace that it includes elsewhere.
fn add_cgroup_namespace(config: &mut Value) {
    if let Some(namespaces) = config["linux"]["namespaces"].as_array_mut()
        && !namespaces.iter().any(|namespace| namespace["type"] == "cgroup")
    {
        namespaces.push(json!({ "type": "cgroup" }));
    }
}
