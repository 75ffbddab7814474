//! The kernel's modules: what each is called, what it needs, and loading it.
//!
//! Debian's package has no `modules.dep`: depmod makes it after installation. Everything stands in
//! the modules themselves, so a small index is built once, and the lab's own modprobe reads it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Loaded before the command starts, because nothing asks for them by name: buses, the root, the
/// scratch disk. Everything else is loaded when it is first used, as on any host.
pub(super) const AT_BOOT: &[&str] =
    &["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "virtio_blk"];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    pub(super) name: String,
    /// Relative to the kernel's folder.
    pub(super) path: PathBuf,
    /// Names and aliases, in the order of loading.
    needs: Vec<String>,
    aliases: Vec<String>,
}

#[derive(Debug, Default)]
pub(super) struct Index {
    modules: Vec<Module>,
    names: BTreeMap<String, Vec<usize>>,
}

impl Index {
    /// Reads every module beneath a folder.
    pub(super) fn scan(folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        collect(&folder.join("lib/modules"), &mut files)?;
        files.sort();
        let mut modules = Vec::new();
        for file in files {
            let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let path = file.strip_prefix(folder).unwrap_or(&file).to_owned();
            modules.push(describe(path, section(&bytes, ".modinfo").unwrap_or_default()));
        }
        Ok(Self::new(modules))
    }

    fn new(modules: Vec<Module>) -> Self {
        let mut names: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (place, module) in modules.iter().enumerate() {
            for name in std::iter::once(&module.name).chain(&module.aliases) {
                names.entry(name.clone()).or_default().push(place);
            }
        }
        Self { modules, names }
    }

    /// One line for each module: name, path, needs, aliases.
    pub(super) fn text(&self) -> String {
        let line = |module: &Module| {
            format!(
                "{}\t{}\t{}\t{}\n",
                module.name,
                module.path.display(),
                module.needs.join(" "),
                module.aliases.join(" ")
            )
        };
        self.modules.iter().map(line).collect()
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let mut modules = Vec::new();
        for line in text.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let [name, path, needs, aliases] = fields[..] else {
                bail!("the index of modules has a line of {} fields: {line:?}", fields.len());
            };
            modules.push(Module {
                name: name.to_owned(),
                path: PathBuf::from(path),
                needs: words(needs),
                aliases: words(aliases),
            });
        }
        Ok(Self::new(modules))
    }

    /// The modules of these names and all that they need, in the order of loading. A name that no
    /// module has is built into the kernel.
    pub(super) fn closure(&self, names: &[&str]) -> Vec<&Module> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in names {
            self.visit(name, &mut seen, &mut order);
        }
        order
    }

    fn visit<'a>(&'a self, name: &str, seen: &mut BTreeSet<usize>, order: &mut Vec<&'a Module>) {
        for place in self.names.get(&normal(name)).into_iter().flatten() {
            let module = &self.modules[*place];
            if seen.insert(*place) {
                for need in &module.needs {
                    self.visit(need, seen, order);
                }
                order.push(module);
            }
        }
    }
}

/// The kernel takes both signs for one.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = folder.read_dir().with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko") {
            files.push(path);
        }
    }
    Ok(())
}

fn describe(path: PathBuf, info: &[u8]) -> Module {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut module = Module { name: normal(&stem), needs: vec![], aliases: vec![], path };
    for line in info.split(|byte| *byte == 0) {
        let Some((key, value)) = std::str::from_utf8(line).ok().and_then(|l| l.split_once('=')) else {
            continue;
        };
        match key {
            "depends" => module.needs.extend(value.split(',').map(normal)),
            "softdep" => {
                // "pre: a b post: c"; what comes after is the business of who needs it.
                let before = value.split("post:").next().unwrap_or_default();
                module.needs.extend(before.trim_start_matches("pre:").split(' ').map(normal));
            }
            "alias" if asked_for(value) => module.aliases.push(normal(value)),
            _ => {}
        }
    }
    if module.name == "kvm_amd" {
        // Opening /dev/kvm asks for the part that all processors share; here it is this one.
        module.aliases.push("char_major_10_232".to_owned());
    }
    module.needs.retain(|need| !need.is_empty());
    module
}

/// Whether the kernel itself asks by this alias; patterns of hardware are udev's business.
fn asked_for(alias: &str) -> bool {
    !alias.contains(['*', ' ', ':'])
}

/// A module's content without its signature: checking one costs far more in emulation than it
/// could gain, and the kernel accepts a module that has none.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    let mut bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if let Some(rest) = bytes.strip_suffix(MAGIC)
        && let Some((rest, size)) = rest.split_last_chunk::<4>()
    {
        // Before the size stand eight bytes of header, and before them the signature.
        let size = usize::try_from(u32::from_be_bytes(*size)).unwrap_or(usize::MAX);
        if let Some(end) = rest.len().checked_sub(size.saturating_add(8)) {
            bytes.truncate(end);
        }
    }
    Ok(bytes)
}

/// The content of a section of a 64-bit ELF file.
fn section<'a>(elf: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        bytes
            .iter()
            .rev()
            .try_fold(0usize, |value, byte| value.checked_mul(256)?.checked_add(usize::from(*byte)))
    };
    let (table, size) = (number(0x28, 8)?, number(0x3a, 2)?);
    let (count, names) = (number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |place: usize| table.checked_add(place.checked_mul(size)?);
    let content = |place: usize| -> Option<&'a [u8]> {
        let at = header(place)?;
        let start = number(at + 0x18, 8)?;
        elf.get(start..start.checked_add(number(at + 0x20, 8)?)?)
    };
    let names = content(names)?;
    (0..count).find_map(|place| {
        let own = names.get(number(header(place)?, 4)?..)?;
        let own = own.split(|byte| *byte == 0).next()?;
        (own == name.as_bytes()).then(|| content(place))?
    })
}

/// Puts one module into the running kernel; one that is there already is fine.
pub(super) fn load(bytes: &[u8]) -> rustix::io::Result<()> {
    match rustix::system::init_module(bytes, c"") {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(name: &str, info: &str) -> Module {
        describe(PathBuf::from(format!("lib/modules/{name}.ko")), info.as_bytes())
    }

    #[test]
    fn needs_come_first_and_once() {
        let index = Index::new(vec![
            module("ext4", "depends=mbcache,jbd2\0softdep=pre: crc32c\0alias=fs-ext4\0"),
            module("jbd2", "depends=\0"),
            module("mbcache", "depends=\0"),
            module("crc32c-generic", "alias=crc32c\0alias=pci:v0*\0"),
        ]);
        let again = Index::parse(&index.text()).unwrap();
        for index in [index, again] {
            let order: Vec<&str> =
                index.closure(&["fs-ext4", "jbd2"]).iter().map(|m| m.name.as_str()).collect();
            assert_eq!(order, ["mbcache", "jbd2", "crc32c_generic", "ext4"]);
        }
    }

    #[test]
    fn a_file_that_is_no_module_has_no_section() {
        assert_eq!(section(b"", ".modinfo"), None);
        assert_eq!(section(&[0xff; 256], ".modinfo"), None);
    }
}
