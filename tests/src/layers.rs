//! Archives of layers and of images as bytes, the hostile ones among them: every field is the caller's.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

/// Writes an archive of a layer entry by entry.
#[derive(Debug, Default)]
pub struct LayerTar {
    bytes: Vec<u8>,
}

/// One entry; what is not set is as an ordinary file of root's has it.
#[derive(Clone, Debug)]
pub struct TarEntry<'a> {
    /// The path as it stands in the header, at most 100 bytes.
    pub path: &'a str,
    /// The type: `0` file, `1` hard link, `2` symbolic link, `3` and `4` devices, `5` folder, `6` FIFO.
    pub kind: u8,
    /// What a link leads to.
    pub link: &'a str,
    /// Permission bits.
    pub mode: u32,
    /// The owner and the group.
    pub owner: (u32, u32),
    /// A device's numbers.
    pub device: (u32, u32),
    /// The size that the header tells; `None`: the content's.
    pub size: Option<u64>,
    /// The content.
    pub content: &'a [u8],
    /// Extended attributes.
    pub xattrs: &'a [(&'a str, &'a [u8])],
}

impl<'a> TarEntry<'a> {
    /// An entry of any kind.
    pub fn new(kind: u8, path: &'a str) -> Self {
        let mode = if kind == b'5' { 0o755 } else { 0o644 };
        Self {
            path,
            kind,
            link: "",
            mode,
            owner: (0, 0),
            device: (0, 0),
            size: None,
            content: b"",
            xattrs: &[],
        }
    }
}

impl LayerTar {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder.
    pub fn folder(&mut self, path: &str) -> &mut Self {
        self.entry(&TarEntry::new(b'5', path))
    }

    /// Adds a file.
    pub fn file(&mut self, path: &str, content: &str) -> &mut Self {
        self.entry(&TarEntry { content: content.as_bytes(), ..TarEntry::new(b'0', path) })
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(&TarEntry { link: target, ..TarEntry::new(b'2', path) })
    }

    /// Adds a hard link.
    pub fn link(&mut self, path: &str, target: &str) -> &mut Self {
        self.entry(&TarEntry { link: target, ..TarEntry::new(b'1', path) })
    }

    /// Adds an entry.
    pub fn entry(&mut self, entry: &TarEntry<'_>) -> &mut Self {
        let records: Vec<u8> = entry
            .xattrs
            .iter()
            .flat_map(|(name, value)| record(format!("SCHILY.xattr.{name}=").as_bytes(), value))
            .collect();
        if !records.is_empty() {
            self.raw(
                &header(&TarEntry { size: Some(records.len() as u64), ..TarEntry::new(b'x', "pax") }),
                &records,
            );
        }
        self.raw(&header(entry), entry.content)
    }

    /// Adds a header and what follows it as they are.
    pub fn raw(&mut self, header: &[u8], content: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(header);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// The archive with its end.
    pub fn finish(&self) -> Vec<u8> {
        [self.bytes.as_slice(), &[0; 1024]].concat()
    }
}

/// A pax record: its length counts itself.
fn record(name: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = name.len() + value.len() + 2;
    let length = (1..).map(|digits| rest + digits).find(|length| length.to_string().len() + rest == *length);
    [format!("{} ", length.unwrap()).as_bytes(), name, value, b"\n"].concat()
}

/// A ustar header with a right checksum.
pub fn header(entry: &TarEntry<'_>) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    let octal = |number: u64, width: usize| format!("{number:0width$o}").into_bytes();
    put(0, entry.path.as_bytes());
    put(100, &octal(entry.mode.into(), 7));
    put(108, &octal(entry.owner.0.into(), 7));
    put(116, &octal(entry.owner.1.into(), 7));
    put(124, &octal(entry.size.unwrap_or(entry.content.len() as u64), 11));
    put(136, &octal(1_000_000_000, 11));
    put(148, b"        ");
    put(156, &[entry.kind]);
    put(157, entry.link.as_bytes());
    put(257, b"ustar\x0000");
    put(329, &octal(entry.device.0.into(), 7));
    put(337, &octal(entry.device.1.into(), 7));
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// Writes an image of these layers, lowest first, packed or not, as an OCI layout in `folder`; gives its path.
///
/// `diff_ids` are the digests of the layers before packing.
pub fn oci_layout(folder: &Path, layers: &[Vec<u8>], diff_ids: &[String]) -> PathBuf {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let blob = |bytes: &[u8], kind: &str| {
        let digest = moat_image::Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        json!({ "mediaType": kind, "digest": digest.to_string(), "size": bytes.len() })
    };
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = blob(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let kind = "application/vnd.oci.image.layer.v1.tar";
    let layers: Vec<_> = layers.iter().map(|layer| blob(layer, kind)).collect();
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let mut entry = blob(manifest.to_string().as_bytes(), kind);
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "test.example/image:1" });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
    let mut layout = std::fs::File::create(folder.join("oci-layout")).unwrap();
    layout.write_all(br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    folder.to_owned()
}

/// As [`oci_layout`], from archives that are not packed.
pub fn plain_layout(folder: &Path, layers: &[Vec<u8>]) -> PathBuf {
    let diff_ids: Vec<String> =
        layers.iter().map(|layer| moat_image::Digest::of(layer).to_string()).collect();
    oci_layout(folder, layers, &diff_ids)
}
