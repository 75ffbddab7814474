//! `--mount`: `KEY=VALUE` fields between commas, quoted as in CSV.

use std::collections::BTreeMap;

use moat_model::workload::{MountSource, MountSpec};

use super::volume;

/// What was said so far.
#[derive(Default)]
struct Fields {
    kind: Option<String>,
    source: Option<String>,
    target: Option<String>,
    read_only: bool,
    read_only_required: bool,
    idmap: Option<Vec<String>>,
    propagation: Option<String>,
    non_recursive: bool,
    create: bool,
    no_copy: bool,
    subpath: Option<String>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    size_bytes: Option<u64>,
    mode: Option<u32>,
    /// Keys that belong to one kind of mount only.
    special: Vec<String>,
}

/// `type=volume,source=cache,target=/data,...`.
pub(crate) fn mount(text: &str) -> Result<MountSpec, String> {
    let mut fields = Fields::default();
    for field in split(text)? {
        let (key, value) = field.split_once('=').map_or((&*field, None), |(key, value)| (key, Some(value)));
        fields.take(&key.to_ascii_lowercase(), value)?;
    }
    fields.finish()
}

/// The fields of a line of CSV.
pub(super) fn split(text: &str) -> Result<Vec<String>, String> {
    let (mut fields, mut field, mut quoted, mut was_quoted) = (Vec::new(), String::new(), false, false);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                field.push('"');
            }
            '"' if quoted => quoted = false,
            '"' if field.is_empty() && !was_quoted => (quoted, was_quoted) = (true, true),
            '"' => return Err(format!("{text:?}: a quote stands within a field that is not quoted")),
            ',' if !quoted => {
                fields.push(std::mem::take(&mut field));
                was_quoted = false;
            }
            _ if was_quoted && !quoted => return Err(format!("{text:?}: text follows a closing quote")),
            letter => field.push(letter),
        }
    }
    if quoted {
        return Err(format!("{text:?}: a quote is not closed"));
    }
    fields.push(field);
    Ok(fields)
}

impl Fields {
    fn take(&mut self, key: &str, value: Option<&str>) -> Result<(), String> {
        if let Some((kind, _)) =
            key.split_once('-').filter(|(kind, _)| ["bind", "volume", "tmpfs"].contains(kind))
        {
            self.special.push(kind.to_owned());
        }
        let truth = || value.map_or(Ok(true), super::boolean);
        let text = || match value {
            Some(value) if !value.is_empty() => Ok(value.to_owned()),
            _ => Err(format!("{key} needs a value: {key}=VALUE")),
        };
        match key {
            "type" => self.kind = Some(text()?),
            "source" | "src" => self.source = Some(text()?),
            "target" | "dst" | "destination" => self.target = Some(text()?),
            "readonly" | "ro" => self.read_only = truth()?,
            "consistency" => drop(text()?),
            "idmap" => {
                self.idmap =
                    Some(value.map_or(Vec::new(), |maps| maps.split('#').map(str::to_owned).collect()));
            }
            "bind-propagation" => self.propagation = Some(volume::propagation(&text()?)?),
            "bind-nonrecursive" => self.non_recursive = truth()?,
            "bind-recursive" => self.recursive(&text()?)?,
            "bind-create-src" => self.create = truth()?,
            "volume-nocopy" => self.no_copy = truth()?,
            "volume-subpath" => self.subpath = Some(text()?),
            "volume-driver" if text()? == "local" => {}
            "volume-driver" => return Err("the only driver of volumes is local".to_owned()),
            "volume-opt" => self.options.extend([super::assignment(&text()?)?]),
            "volume-label" => self.labels.extend([super::pair(&text()?)?]),
            "tmpfs-size" => self.size_bytes = Some(super::size::parse(&text()?)?),
            "tmpfs-mode" => self.mode = Some(volume::mode(&text()?)?),
            _ => return Err(format!("{key:?} is no key of a mount")),
        }
        Ok(())
    }

    fn recursive(&mut self, text: &str) -> Result<(), String> {
        match text {
            "enabled" => self.non_recursive = false,
            "disabled" => self.non_recursive = true,
            "readonly" => self.read_only_required = true,
            "writable" => {
                return Err(
                    "mounts below a read-only mount are read-only, too; bind-recursive=writable is not \
                            supported"
                        .to_owned(),
                );
            }
            _ => {
                return Err(format!(
                    "bind-recursive={text} is not one of enabled, disabled, writable and readonly"
                ));
            }
        }
        Ok(())
    }

    fn finish(self) -> Result<MountSpec, String> {
        let kind = self.kind.as_deref().unwrap_or("volume");
        if !["bind", "volume", "tmpfs"].contains(&kind) {
            return Err(format!("type={kind} is not one of bind, volume and tmpfs"));
        }
        if let Some(other) = self.special.iter().find(|special| *special != kind) {
            return Err(format!("{other}-* options do not belong to a mount of type {kind}"));
        }
        if self.read_only_required && !self.read_only {
            return Err("bind-recursive=readonly needs readonly".to_owned());
        }
        let target = volume::target(self.target.as_deref().ok_or("the target is missing")?)?;
        let source = match kind {
            "bind" => MountSource::Bind {
                path: volume::host_path(self.source.as_deref().ok_or("a bind mount needs a source")?)?,
                create: self.create,
                propagation: self.propagation,
                non_recursive: self.non_recursive,
            },
            "tmpfs" => match self.source {
                Some(_) => return Err("a tmpfs has no source".to_owned()),
                None => {
                    MountSource::Tmpfs { size_bytes: self.size_bytes, mode: self.mode, options: Vec::new() }
                }
            },
            _ => MountSource::Volume {
                name: self.source.as_deref().map(volume::volume_name).transpose()?,
                no_copy: self.no_copy,
                subpath: self.subpath,
                options: self.options,
                labels: self.labels,
            },
        };
        Ok(MountSpec { source, target, read_only: self.read_only, idmap: self.idmap })
    }
}

#[cfg(test)]
mod tests {
    use moat_model::workload::MountSource;

    use super::mount;

    #[test]
    fn the_three_kinds() {
        let found = mount("type=bind,src=/srv,dst=/data,readonly,bind-propagation=rslave").unwrap();
        assert!(found.read_only);
        assert!(matches!(&found.source, MountSource::Bind { path, create: false, .. } if path == "/srv"));
        let found =
            mount("source=cache,target=/data,volume-opt=a=b,\"volume-opt=c=d,e\",volume-label=x").unwrap();
        let MountSource::Volume { name, options, labels, .. } = found.source else { panic!("a volume") };
        assert_eq!(
            (name.as_deref(), options["a"].as_str(), options["c"].as_str()),
            (Some("cache"), "b", "d,e")
        );
        assert_eq!(labels["x"], "");
        let found = mount("type=tmpfs,destination=/run,tmpfs-size=1m,tmpfs-mode=0700").unwrap();
        assert_eq!(
            found.source,
            MountSource::Tmpfs { size_bytes: Some(1 << 20), mode: Some(0o700), options: Vec::new() }
        );
        assert!(!mount("dst=/x,readonly=false").unwrap().read_only);
        assert!(mount("dst=/x,ro=1").unwrap().read_only);
        assert!(mount("Type=bind,src=/a,dst=/b,bind-recursive=readonly,ro").is_ok());
    }

    #[test]
    fn what_docker_refuses() {
        for text in [
            "",
            "type=bind",
            "type=bind,source=/a",
            "type=bind,target=/a",
            "type=nfs,target=/a",
            "target=a",
            "target=/a,foo=bar",
            "target=/a,foo",
            "target=/a,readonly=no",
            "target=/",
            "target=",
            "type=tmpfs,source=/a,target=/b",
            "type=tmpfs,target=/b,volume-nocopy",
            "type=volume,target=/b,bind-propagation=shared",
            "type=bind,src=/a,dst=/b,bind-propagation=x",
            "type=bind,src=/a,dst=/b,volume-label=x",
            "source=/a,target=/b",
            "target=/a,volume-opt=x",
            "type=bind,src=/a,dst=/b,bind-recursive=readonly",
            "type=bind,src=/a,dst=/b,bind-recursive=x",
            "target=/a,\"ro",
            "target=/a,r\"o",
            "\"target=/a\"x",
            "target=/a,volume-driver=nfs",
        ] {
            assert!(mount(text).is_err(), "{text:?}");
        }
    }
}
