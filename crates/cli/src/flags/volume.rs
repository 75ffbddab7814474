//! `--volume` and `--tmpfs`.

use std::collections::BTreeMap;

use moat_model::workload::{MountSource, MountSpec};

/// `[SOURCE:]TARGET[:OPTIONS]`. A source that begins with a slash or a dot is a path of the host, any other
/// is the name of a volume.
pub(crate) fn volume(text: &str) -> Result<MountSpec, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, options) = match *parts.as_slice() {
        [target] => (None, target, ""),
        [target, options]
            if !options.starts_with('/') && options.split(',').all(|word| Word::of(word).is_some()) =>
        {
            return Err(format!("{options:?} are options, but no source stands before {target:?}"));
        }
        [source, target] => (Some(source), target, ""),
        [source, target, options] => (Some(source), target, options),
        _ => return Err(format!("{text:?} should be [SOURCE:]TARGET[:OPTIONS]")),
    };
    let target = self::target(target)?;
    let options = Options::parse(options)?;
    let source = match source {
        None => MountSource::Volume {
            name: None,
            no_copy: options.no_copy,
            subpath: None,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
        },
        Some(path) if path.starts_with('/') || path.starts_with('.') => options.bind(path)?,
        Some(name) => options.named(name)?,
    };
    Ok(MountSpec { source, target, read_only: options.read_only, idmap: options.idmap })
}

/// An absolute path in the workload that is not its root.
pub(super) fn target(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("{text:?} is not an absolute path in the workload"));
    }
    if text.bytes().all(|byte| byte == b'/') {
        return Err("nothing can be mounted at /, where the image's own root is".to_owned());
    }
    if text.split('/').any(|part| part == "..") {
        return Err(format!("{text:?} goes up; write the path without .."));
    }
    Ok(text.to_owned())
}

/// A path of the host, made absolute.
pub(super) fn host_path(text: &str) -> Result<String, String> {
    let path = std::path::absolute(text).map_err(|error| format!("{text:?}: {error}"))?;
    path.into_os_string().into_string().map_err(|path| format!("{path:?} is not UTF-8"))
}

/// A volume's name: at least two characters, so that a drive letter is none.
pub(crate) fn volume_name(text: &str) -> Result<String, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && text.len() >= 2 && text.len() <= 255 && text.bytes().all(legal) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "{text:?} is no volume name: at least two of A-Z a-z 0-9 _ . - that begin with a letter or digit; a \
         path of the host begins with / or ./"
    ))
}

const PROPAGATIONS: [&str; 6] = ["shared", "rshared", "slave", "rslave", "private", "rprivate"];

/// Whether `text` is a propagation of mount(2).
pub(super) fn propagation(text: &str) -> Result<String, String> {
    if PROPAGATIONS.contains(&text) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is not one of {}", PROPAGATIONS.join(", ")))
}

/// A word of a volume's options.
enum Word<'a> {
    ReadOnly(bool),
    Propagation(&'a str),
    NoCopy,
    Label(&'a str),
    /// Words for virtual machines on desktops: any mount here is as consistent as can be.
    Consistency,
    IdMap(Vec<String>),
}

impl<'a> Word<'a> {
    fn of(word: &'a str) -> Option<Self> {
        Some(match word {
            "ro" => Self::ReadOnly(true),
            "rw" => Self::ReadOnly(false),
            "nocopy" => Self::NoCopy,
            "z" | "Z" => Self::Label(word),
            "consistent" | "cached" | "delegated" | "default" => Self::Consistency,
            "idmap" => Self::IdMap(Vec::new()),
            word if PROPAGATIONS.contains(&word) => Self::Propagation(word),
            word => Self::IdMap(word.strip_prefix("idmap=")?.split('#').map(str::to_owned).collect()),
        })
    }

    /// Options of one kind exclude each other.
    fn kind(&self) -> u8 {
        match self {
            Self::ReadOnly(_) => 0,
            Self::Propagation(_) => 1,
            Self::NoCopy => 2,
            Self::Label(_) => 3,
            Self::Consistency => 4,
            Self::IdMap(_) => 5,
        }
    }
}

#[derive(Default)]
struct Options {
    read_only: bool,
    no_copy: bool,
    propagation: Option<String>,
    idmap: Option<Vec<String>>,
}

impl Options {
    fn parse(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        let mut seen = [false; 6];
        for word in text.split(',').filter(|_| !text.is_empty()) {
            let found = Word::of(word).ok_or_else(|| format!("{word:?} is no option of a volume"))?;
            let kind = usize::from(found.kind());
            if std::mem::replace(&mut seen[kind], true) {
                return Err(format!("{text:?} says the same thing twice, or two that exclude each other"));
            }
            match found {
                Word::ReadOnly(read_only) => options.read_only = read_only,
                Word::Propagation(word) => options.propagation = Some(word.to_owned()),
                Word::NoCopy => options.no_copy = true,
                Word::Label(word) => refuse_label(word)?,
                Word::Consistency => {}
                Word::IdMap(maps) => options.idmap = Some(maps),
            }
        }
        Ok(options)
    }

    fn bind(&self, path: &str) -> Result<MountSource, String> {
        if self.no_copy {
            return Err(format!("nocopy is an option of volumes, and {path:?} is a path of the host"));
        }
        Ok(MountSource::Bind {
            path: host_path(path)?,
            create: true,
            propagation: self.propagation.clone(),
            non_recursive: false,
        })
    }

    fn named(&self, name: &str) -> Result<MountSource, String> {
        if let Some(propagation) = &self.propagation {
            return Err(format!("{propagation} is an option of paths of the host, and {name:?} is a volume"));
        }
        Ok(MountSource::Volume {
            name: Some(volume_name(name)?),
            no_copy: self.no_copy,
            subpath: None,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
        })
    }
}

/// Without SELinux there is nothing to label, and then these options ask for nothing.
fn refuse_label(word: &str) -> Result<(), String> {
    if std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        return Err(format!("{word} would give the files another SELinux label, which is not supported"));
    }
    Ok(())
}

/// `PATH[:OPTIONS]`, with the options of tmpfs(5).
pub(crate) fn tmpfs(text: &str) -> Result<MountSpec, String> {
    let (path, words) = text.split_once(':').unwrap_or((text, ""));
    let target = target(path)?;
    let (mut size_bytes, mut mode, mut options, mut read_only) = (None, None, Vec::new(), false);
    for word in words.split(',').filter(|word| !word.is_empty()) {
        match word.split_once('=') {
            Some(("size", size)) if !size.ends_with('%') => size_bytes = Some(super::size::parse(size)?),
            Some(("mode", octal)) => mode = Some(self::mode(octal)?),
            _ if word == "ro" => read_only = true,
            _ if word == "rw" => read_only = false,
            _ => options.push(word.to_owned()),
        }
    }
    Ok(MountSpec { source: MountSource::Tmpfs { size_bytes, mode, options }, target, read_only, idmap: None })
}

/// A file mode in octal.
pub(super) fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 && !text.starts_with('+') => Ok(mode),
        _ => Err(format!("{text:?} is no file mode in octal, such as 1777")),
    }
}

#[cfg(test)]
mod tests {
    use moat_model::workload::MountSource;

    use super::{tmpfs, volume};

    #[test]
    fn anonymous_and_named_volumes() {
        let anonymous = volume("/data").unwrap();
        assert!(matches!(anonymous.source, MountSource::Volume { name: None, .. }));
        assert_eq!(anonymous.target, "/data");
        let named = volume("cache:/data:ro,nocopy").unwrap();
        assert!(named.read_only);
        assert!(
            matches!(&named.source, MountSource::Volume { name: Some(name), no_copy: true, .. } if name == "cache")
        );
    }

    #[test]
    fn paths_of_the_host() {
        let MountSource::Bind { path, create: true, propagation, .. } =
            volume("/srv:/data:rw,rslave").unwrap().source
        else {
            panic!("a bind mount");
        };
        assert_eq!((&*path, propagation.as_deref()), ("/srv", Some("rslave")));
        let MountSource::Bind { path, .. } = volume("./here:/data").unwrap().source else {
            panic!("a bind mount");
        };
        assert_eq!(path, std::env::current_dir().unwrap().join("here").to_str().unwrap());
        assert_eq!(volume("/a:/b:idmap").unwrap().idmap, Some(Vec::new()));
        assert!(volume("/a:/b:cached").is_ok());
    }

    #[test]
    fn what_docker_refuses() {
        for text in [
            "",
            ":",
            ":/x",
            "/a:",
            "/a:b",
            "/",
            "/a:/",
            "data:/",
            "/a:/b:x",
            "/a:/b:ro,rw",
            "/a:/b:ro,ro",
            "/a:ro",
            "/a:/b:shared,slave",
            "a:/b",
            "-a:/b",
            "na me:/b",
            "cache:/b:shared",
            "/a:/b:nocopy",
            "/a:/b:ro:z",
            "cache:/b/../c",
            "/a:/b:ro,",
        ] {
            assert!(volume(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn file_systems_in_memory() {
        let MountSource::Tmpfs { size_bytes, mode, options } =
            tmpfs("/run:size=64m,mode=755,noexec").unwrap().source
        else {
            panic!("a tmpfs");
        };
        assert_eq!((size_bytes, mode, options), (Some(64 << 20), Some(0o755), vec!["noexec".to_owned()]));
        assert!(tmpfs("/run:ro").unwrap().read_only);
        for text in ["", "run", "/", "/run:size=x", "/run:mode=8", "/run:mode=77777"] {
            assert!(tmpfs(text).is_err(), "{text:?}");
        }
    }
}
