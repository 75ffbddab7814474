//! What starting a workload would do, as text: the steps of the engine, then those of the sandbox, in their order.
//!
//! Nothing is made for it. What a start would look up is looked up, in the image's layers as they are on the disk and
//! on the host; what a start would make has a name that stands for it: the workload is `ID`, a volume without a name
//! `VOLUME`.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use moat_image::Image;
use moat_model::id::ContainerId;
use moat_model::oci::Spec;
use moat_model::workload::{Isolation, MountSource, MountSpec, NamespaceMode, NetworkMode, WorkloadSpec};
use moat_sandbox::container::{self, CreateOptions};
use moat_sandbox::host::Host;
use moat_sandbox::step::Place;

use crate::files;
use crate::oci::{self, HostFacts, Inputs, NamespacePaths};
use crate::user::{self, Identity};
use crate::view::View;
use crate::volume;
use crate::workload;
use crate::{Engine, Error, Result};

/// Stands for the id of a workload that is only planned.
const ID: &str = "ID";

/// One line: who does it, what, and what does the same typed by hand.
struct Line {
    who: &'static str,
    what: String,
    by_hand: String,
}

impl Engine {
    /// The steps from a wish to a program that runs, as text.
    ///
    /// Errors: what creating or starting such a workload would refuse.
    pub fn plan(&self, spec: &WorkloadSpec) -> Result<String> {
        if spec.isolation == Isolation::Microvm {
            return Err(Error::invalid("the plan of a microVM can not be told yet")
                .hint("`--explain` tells the steps of one that is started"));
        }
        workload::check_wish(spec)?;
        let image = self.images().find(&spec.image)?;
        let plan = Planning { engine: self, spec, image: &image };
        let mut lines = plan.claims()?;
        let mounts = plan.mounts()?;
        lines.extend(plan.volumes(&mounts)?);
        lines.push(monitor());
        lines.push(plan.root());
        lines.extend(plan.network());
        let config = plan.config(&mounts, &mut lines)?;
        let options = CreateOptions { bundle: plan.run(), init: spec.init, ..CreateOptions::default() };
        let id = ContainerId::new(ID).map_err(|error| Error::new(error.to_string()))?;
        let steps = container::plan_only(&id, &config, &options, &Host::detect()?)?;
        lines.extend(steps.steps.iter().map(|step| {
            let who = match step.place {
                Place::Runtime => "sandbox",
                Place::Init => "init",
            };
            Line { who, what: step.action.to_string(), by_hand: step.action.by_hand() }
        }));
        Ok(text(&lines, &steps.warnings))
    }
}

/// A workload that is not made.
struct Planning<'a> {
    engine: &'a Engine,
    spec: &'a WorkloadSpec,
    image: &'a Image,
}

impl Planning<'_> {
    fn data(&self) -> PathBuf {
        self.engine.roots().workloads().join(ID)
    }

    fn run(&self) -> PathBuf {
        self.engine.roots().running().join(ID)
    }

    /// What `create` claims.
    fn claims(&self) -> Result<Vec<Line>> {
        let folder = self.data();
        let mut lines = vec![
            line(
                format!("make folder {}", folder.display()),
                format!("mkdir -m 700 {0} {0}/upper {0}/work", folder.display()),
            ),
            line(format!("hold image {}", self.image.id), String::new()),
        ];
        lines.push(match &self.spec.name {
            Some(name) => {
                if std::fs::symlink_metadata(self.engine.roots().names().join(name)).is_ok() {
                    return Err(Error::conflict(format!("the name {name} is taken"))
                        .hint("choose another one, or remove the workload that has it"));
                }
                let link = self.engine.roots().names().join(name);
                line(format!("claim name {name}"), format!("ln -s ../workloads/{ID} {}", link.display()))
            }
            None => line("claim a name that is free".to_owned(), String::new()),
        });
        Ok(lines)
    }

    /// The mounts, with a name for every volume.
    fn mounts(&self) -> Result<Vec<MountSpec>> {
        let others = |name: &str| self.engine.find(name)?.mounts();
        let mut mounts = volume::decide(self.spec, &self.image.config.config, &others)?;
        for mount in &mut mounts {
            if let MountSource::Volume { name, .. } = &mut mount.source {
                name.get_or_insert_with(|| "VOLUME".to_owned());
            }
        }
        Ok(mounts)
    }

    /// Volumes and folders that are not there yet.
    fn volumes(&self, mounts: &[MountSpec]) -> Result<Vec<Line>> {
        let volumes = self.engine.volumes();
        let mut lines = Vec::new();
        for mount in mounts {
            match &mount.source {
                MountSource::Volume { name: Some(name), no_copy, subpath, .. } => {
                    let path = volumes.place(name)?;
                    if !volumes.has(name)? {
                        let made = format!("mkdir -p {}", path.display());
                        lines.push(line(format!("make volume {name}"), made));
                    }
                    if !no_copy && subpath.is_none() {
                        let (from, to) = (&mount.target, path.display());
                        lines.push(line(
                            format!("fill volume {name} with what the image has at {from}, if it is empty"),
                            format!("cp -a ROOT{from}/. {to}"),
                        ));
                    }
                }
                MountSource::Bind { path, create: true, .. } if !Path::new(path).exists() => {
                    lines.push(line(format!("make folder {path}"), format!("mkdir -p {path}")));
                }
                _ => {}
            }
        }
        Ok(lines)
    }

    fn root(&self) -> Line {
        let layers = self.engine.images().layer_paths(self.image);
        let point = self.engine.roots().mount_point();
        let lower: Vec<String> = layers.iter().map(|layer| layer.display().to_string()).collect();
        let options = format!(
            "lowerdir={},upperdir={data}/upper,workdir={data}/work",
            lower.join(":"),
            data = self.data().display()
        );
        line(
            format!("mount the root file system of {} layers on {}", layers.len(), point.display()),
            format!("mount -t overlay moat -o {options} {}", point.display()),
        )
    }

    fn network(&self) -> Option<Line> {
        let NetworkMode::Bridge = self.spec.network.mode else { return None };
        let names: Vec<&str> =
            self.spec.network.endpoints.iter().map(|endpoint| endpoint.network.as_str()).collect();
        let names = if names.is_empty() { "the default network".to_owned() } else { names.join(", ") };
        Some(line(format!("make a network namespace with a place on {names}"), format!("ip netns add {ID}")))
    }

    /// The configuration that the sandbox would get, and the lines about what is written for it.
    fn config(&self, wanted: &[MountSpec], lines: &mut Vec<Line>) -> Result<Spec> {
        let (spec, image) = (self.spec, &self.image.config.config);
        let maps = oci::user_namespace(spec.userns.as_deref(), None)?;
        let mut mounts = volume::planned(&self.engine.volumes(), wanted, maps.as_ref())?;
        let shared = match &spec.network.mode {
            NetworkMode::Container(other) => Some(self.engine.find(other)?.folder().data.clone()),
            _ => None,
        };
        let files = files::mounts(&self.data(), shared.as_deref(), &mounts, spec.read_only);
        lines.extend(files.iter().map(|file| {
            let path = self.data().join(Path::new(&file.target).file_name().unwrap_or_default());
            line(format!("write {}", path.display()), String::new())
        }));
        mounts.extend(files);
        let user = spec.user.as_deref().unwrap_or(&image.user);
        oci::config(&Inputs {
            id: ID,
            spec,
            image,
            host: &HostFacts::detect(Host::detect()?)?,
            identity: &self.identity(user)?,
            root: &self.engine.roots().mount_point(),
            mounts: &mounts,
            devices: &oci::devices::look_up(spec)?,
            block_devices: &oci::devices::block_devices(&spec.limits)?,
            id_maps: maps.as_ref(),
            namespaces: &self.namespaces()?,
        })
    }

    /// The user, looked up in the layers alone.
    fn identity(&self, user: &str) -> Result<Identity> {
        let groups = &self.spec.group_add;
        if self.image.layers.is_empty() {
            return user::resolve(user, groups, "", "");
        }
        let view = View::of_image(self.engine, self.image)?;
        user::look_up(view.root(), user, groups)
    }

    fn namespaces(&self) -> Result<NamespacePaths> {
        let path = |mode: &NamespaceMode, kind: &str| match mode {
            NamespaceMode::Container(other) => self.engine.find(other)?.namespace(kind).map(Some),
            NamespaceMode::Private | NamespaceMode::Host => Ok(None),
        };
        let network = match &self.spec.network.mode {
            NetworkMode::None | NetworkMode::Host => None,
            NetworkMode::Path(path) => Some(PathBuf::from(path)),
            NetworkMode::Container(other) => Some(self.engine.find(other)?.namespace("net")?),
            NetworkMode::Bridge => Some(Path::new("/run/netns").join(ID)),
        };
        let shares_memory = matches!(self.spec.ipc, NamespaceMode::Container(_));
        Ok(NamespacePaths {
            pid: path(&self.spec.pid, "pid")?,
            ipc: path(&self.spec.ipc, "ipc")?,
            uts: path(&self.spec.uts, "uts")?,
            network,
            user: None,
            shm: shares_memory.then(|| self.engine.roots().shm_point()),
        })
    }
}

fn monitor() -> Line {
    line("fork the monitor, unshare NEWNS".to_owned(), "unshare --mount sh".to_owned())
}

fn line(what: String, by_hand: String) -> Line {
    Line { who: "engine", what, by_hand }
}

/// A numbered line for each step.
fn text(lines: &[Line], warnings: &[String]) -> String {
    // A few steps name long paths; the others should not stand apart for it.
    const WIDTH: usize = 60;
    let width = lines.iter().map(|line| line.what.chars().count().min(WIDTH)).max().unwrap_or(0);
    let mut text = String::new();
    for (index, Line { who, what, by_hand }) in lines.iter().enumerate() {
        let hand = if by_hand.is_empty() { String::new() } else { format!("  # {by_hand}") };
        let row = format!("{index:>3}  {who:<8}{what:<width$}{hand}");
        // Writing into a string can not fail.
        let _ = writeln!(text, "{}", row.trim_end());
    }
    for warning in warnings {
        let _ = writeln!(text, "warning: {warning}");
    }
    text
}
