//! A kernel's modules: what each is called and what it needs. All of that stands in the modules themselves, so
//! no `modules.dep` is needed, which a package does not hold before it is installed.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, Result};
use std::path::{Path, PathBuf};

use crate::named;

/// One module.
#[derive(Clone, Debug)]
pub struct Module {
    /// As the kernel calls it, with `_` for `-`.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    needs: Vec<String>,
    aliases: Vec<String>,
}

impl Module {
    /// What the kernel is to load: the file without its signature.
    pub fn read(&self) -> Result<Vec<u8>> {
        let bytes = std::fs::read(&self.path).map_err(|error| named("module", &self.path, &error))?;
        Ok(without_signature(bytes))
    }
}

/// All modules of a kernel, by name and alias.
#[derive(Debug, Default)]
pub struct Index {
    modules: Vec<Module>,
    names: BTreeMap<String, Vec<usize>>,
}

impl Index {
    /// Reads every module beneath a folder.
    pub fn scan(folder: &Path) -> Result<Self> {
        let mut files = Vec::new();
        collect(folder, &mut files)?;
        files.sort();
        if files.is_empty() {
            return Err(Error::other("there are none; give lib/modules/VERSION of the kernel's package"));
        }
        let mut index = Self::default();
        for path in files {
            let bytes = std::fs::read(&path).map_err(|error| named("module", &path, &error))?;
            index.add(describe(path, modinfo(&bytes).unwrap_or_default()));
        }
        Ok(index)
    }

    fn add(&mut self, module: Module) {
        let place = self.modules.len();
        for name in std::iter::once(&module.name).chain(&module.aliases) {
            self.names.entry(name.clone()).or_default().push(place);
        }
        self.modules.push(module);
    }

    /// Lets the kernel find a module by a further alias.
    pub fn also_called(&mut self, module: &str, alias: &str) {
        for place in self.names.get(&normal(module)).cloned().unwrap_or_default() {
            if let Some(module) = self.modules.get_mut(place) {
                module.aliases.push(normal(alias));
                self.names.entry(normal(alias)).or_default().push(place);
            }
        }
    }

    /// The index as [`Index::parse`] reads it: a line for each module, with its name, its file below `folder`, what it
    /// needs, and its aliases.
    pub fn text(&self, folder: &Path) -> String {
        let line = |module: &Module| {
            let path = module.path.strip_prefix(folder).unwrap_or(&module.path).display();
            format!("{}\t{path}\t{}\t{}\n", module.name, module.needs.join(" "), module.aliases.join(" "))
        };
        self.modules.iter().map(line).collect()
    }

    /// Reads what [`Index::text`] has written, the files being below `folder` now.
    ///
    /// Errors: a line that is none of it.
    pub fn parse(text: &str, folder: &Path) -> Result<Self> {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
        let mut index = Self::default();
        for line in text.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let &[name, path, needs, aliases] = fields.as_slice() else {
                let fields = fields.len();
                return Err(Error::other(format!(
                    "the index of modules has a line of {fields} fields: {line:?}"
                )));
            };
            index.add(Module {
                name: name.to_owned(),
                path: folder.join(path),
                needs: words(needs),
                aliases: words(aliases),
            });
        }
        Ok(index)
    }

    /// Whether a module is called so.
    pub fn knows(&self, name: &str) -> bool {
        self.names.contains_key(&normal(name))
    }

    /// The modules of these names and all that they need, in the order of loading. What no module is called is
    /// built into the kernel.
    pub fn closure(&self, names: &[&str]) -> Vec<&Module> {
        let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
        for name in names {
            self.visit(name, &mut seen, &mut order);
        }
        order
    }

    fn visit<'a>(&'a self, name: &str, seen: &mut BTreeSet<usize>, order: &mut Vec<&'a Module>) {
        for place in self.names.get(&normal(name)).into_iter().flatten() {
            if let Some(module) = self.modules.get(*place)
                && seen.insert(*place)
            {
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
    let what = |error: Error| named("folder", folder, &error);
    for entry in folder.read_dir().map_err(what)? {
        let entry = entry.map_err(what)?;
        let path = entry.path();
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // A link leads to where the kernel was built.
        if entry.file_type().map_err(what)?.is_dir() {
            collect(&path, files)?;
        } else if name.ends_with(".ko") {
            files.push(path);
        } else if [".ko.xz", ".ko.zst", ".ko.gz"].iter().any(|end| name.ends_with(end)) {
            return Err(Error::other(format!(
                "{} is compressed; decompress the modules first",
                path.display()
            )));
        }
    }
    Ok(())
}

fn describe(path: PathBuf, info: &[u8]) -> Module {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let mut module = Module { name: normal(&stem), needs: vec![], aliases: vec![], path };
    for line in info.split(|byte| *byte == 0) {
        let Some((key, value)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once('=')) else {
            continue;
        };
        match key {
            "depends" => module.needs.extend(value.split(',').map(normal)),
            "softdep" => {
                // "pre: a b post: c"; what comes after is the business of who needs it.
                let before = value.split("post:").next().unwrap_or_default();
                module.needs.extend(before.trim_start_matches("pre:").split(' ').map(normal));
            }
            // Patterns of hardware are udev's business.
            "alias" if !value.contains(['*', ' ', ':']) => module.aliases.push(normal(value)),
            _ => {}
        }
    }
    module.needs.retain(|need| !need.is_empty());
    module
}

/// A module's content without its signature, which a kernel accepts and which costs time to check.
pub(crate) fn without_signature(mut bytes: Vec<u8>) -> Vec<u8> {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    if let Some((rest, size)) = bytes.strip_suffix(MAGIC).and_then(<[u8]>::split_last_chunk::<4>) {
        // Before the size stand eight bytes of header, and before them the signature.
        let size = usize::try_from(u32::from_be_bytes(*size)).unwrap_or(usize::MAX);
        if let Some(end) = rest.len().checked_sub(size.saturating_add(8)) {
            bytes.truncate(end);
        }
    }
    bytes
}

/// The section in which a module describes itself.
fn modinfo(elf: &[u8]) -> Option<&[u8]> {
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        bytes
            .iter()
            .rev()
            .try_fold(0_usize, |value, byte| value.checked_mul(256)?.checked_add((*byte).into()))
    };
    let (table, size, count, names) =
        (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?, number(0x3e, 2)?);
    let header = |place: usize| table.checked_add(place.checked_mul(size)?);
    let content = |place: usize| {
        let at = header(place)?;
        let start = number(at.checked_add(0x18)?, 8)?;
        elf.get(start..start.checked_add(number(at.checked_add(0x20)?, 8)?)?)
    };
    let names = content(names)?;
    let is_it = |place: &usize| {
        let name = header(*place).and_then(|at| number(at, 4)).and_then(|at| names.get(at..));
        name.is_some_and(|name| name.starts_with(b".modinfo\0"))
    };
    (0..count).find(is_it).and_then(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn needs_come_first_and_once() {
        let mut index = Index::default();
        for (name, info) in [
            ("ext4", "depends=mbcache,jbd2\0softdep=pre: crc32c\0alias=fs-ext4\0"),
            ("jbd2", "depends=\0"),
            ("mbcache", "depends=\0"),
            ("crc32c-generic", "alias=crc32c\0alias=pci:v0*\0"),
        ] {
            index.add(describe(PathBuf::from(format!("{name}.ko")), info.as_bytes()));
        }
        let again = Index::parse(&index.text(Path::new("")), Path::new("/lib")).unwrap();
        assert!(again.modules.iter().all(|module| module.path.starts_with("/lib")));
        for index in [index, again] {
            let order: Vec<&str> =
                index.closure(&["fs-ext4", "jbd2", "none"]).iter().map(|m| m.name.as_str()).collect();
            assert_eq!(order, ["mbcache", "jbd2", "crc32c_generic", "ext4"]);
        }
    }

    #[test]
    fn a_further_alias_finds_the_module() {
        let mut index = Index::default();
        index.add(describe(PathBuf::from("kvm-amd.ko"), b""));
        index.also_called("kvm_amd", "char-major-10-232");
        assert_eq!(index.closure(&["char-major-10-232"]).len(), 1);
        assert!(Index::parse("one\ttwo", Path::new("")).is_err());
    }

    #[test]
    fn what_is_no_module_has_no_description() {
        assert_eq!(modinfo(b""), None);
        assert_eq!(modinfo(&[0xff; 256]), None);
    }

    #[test]
    fn a_signature_is_cut_off_and_a_false_one_is_left() {
        let signed = |size: u32| {
            let mut bytes = b"modulesignature........".to_vec();
            bytes.extend_from_slice(&size.to_be_bytes());
            bytes.extend_from_slice(b"~Module signature appended~\n");
            bytes
        };
        assert_eq!(without_signature(signed(9)), b"module");
        assert_eq!(without_signature(signed(u32::MAX)), signed(u32::MAX));
    }
}
