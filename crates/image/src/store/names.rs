//! Names: how images are found, tagged and untagged.

use std::path::{Path, PathBuf};

use super::record::folder_names;
use super::{Image, Store, work};
use crate::{Context, Digest, Error, Kind, Reference, Result};

/// The longest file name. A registry, a repository and a tag of full length together would be longer.
const MAX_FILE_NAME: usize = 255;

impl Store {
    /// The image that a name, an id, the beginning of an id, or a name with a digest means.
    ///
    /// Errors: there is none ([`Kind::NotFound`]), or the beginning of an id fits several ([`Kind::Ambiguous`]).
    pub fn find(&self, name_or_id: &str) -> Result<Image> {
        let id = self.find_id(name_or_id)?;
        self.image_by_id(&id)
    }

    pub(crate) fn find_id(&self, text: &str) -> Result<Digest> {
        let missing = || Error::new(format!("no such image: {text}")).with_kind(Kind::NotFound);
        if let Some(id) = text.strip_prefix("sha256:").and_then(Digest::from_hex) {
            return if self.image_path(&id).exists() { Ok(id) } else { Err(missing()) };
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let could_be_id = (1..=64).contains(&hex.len())
            && hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        // A tag goes before the beginning of an id, as with Docker: `cafe` may be both.
        match Reference::parse(text) {
            Ok(reference) => {
                if let Some(id) = self.resolve(&reference)? {
                    return Ok(id);
                }
            }
            Err(error) if !could_be_id => return Err(error),
            Err(_) => {}
        }
        if !could_be_id {
            return Err(missing());
        }
        let mut fitting = self.image_ids()?.into_iter().filter(|id| id.hex().starts_with(hex));
        let found = fitting.next().ok_or_else(missing)?;
        match fitting.next() {
            None => Ok(found),
            Some(_) => Err(Error::new(format!("image id {text} is the beginning of several ids"))
                .with_kind(Kind::Ambiguous)),
        }
    }

    /// The image that a reference leads to, by its tag, its digest, or both.
    pub(crate) fn resolve(&self, reference: &Reference) -> Result<Option<Digest>> {
        if reference.digest().is_none() {
            return self.pointed(reference);
        }
        let wanted = reference.digest();
        for id in self.image_ids()? {
            let Some(record) = self.record(&id)? else { continue };
            let is_it = |text: &String| {
                Reference::parse(text).is_ok_and(|known| {
                    known.digest() == wanted && known.full_repository() == reference.full_repository()
                })
            };
            if record.digests.iter().any(is_it) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// All images, the newest in the store first.
    pub fn list(&self) -> Result<Vec<Image>> {
        let names = self.all_names()?;
        let mut images = Vec::new();
        for id in self.image_ids()? {
            // One that goes while this looks is not listed.
            let Some(record) = self.record(&id)? else { continue };
            let own = names.iter().filter(|(_, to)| *to == id).map(|(name, _)| name.clone()).collect();
            match self.image(record, own) {
                Err(_) if !self.image_path(&id).exists() => {}
                other => images.push(other?),
            }
        }
        images.sort_by(|one, other| other.stored.cmp(&one.stored));
        Ok(images)
    }

    /// Gives an image a further name; the name is taken from the image that had it.
    ///
    /// Errors: the name holds a digest; there is no such image.
    pub fn tag(&self, image: &Image, name: &Reference) -> Result<()> {
        let _lock = self.lock_to_add()?;
        if !self.image_path(&image.id).exists() {
            return Err(Error::new(format!("no such image: {}", image.id)).with_kind(Kind::NotFound));
        }
        self.point(name, &image.id)
    }

    fn name_path(&self, name: &Reference) -> Result<PathBuf> {
        let tag = match (name.tag(), name.digest()) {
            (Some(tag), None) => tag,
            _ => return Err(Error::new(format!("image name {name} must have a tag and no digest"))),
        };
        let file = format!("{}:{tag}", name.full_repository()).replace('/', "%");
        if file.len() > MAX_FILE_NAME {
            return Err(Error::new(format!("image name {name} is longer than {MAX_FILE_NAME} bytes")));
        }
        Ok(self.root().join("names").join(file))
    }

    /// The image that a tag leads to.
    pub(super) fn pointed(&self, name: &Reference) -> Result<Option<Digest>> {
        let path = self.name_path(name)?;
        read_pointer(&path)
    }

    /// Makes a tag lead to an image. The caller may add.
    pub(super) fn point(&self, name: &Reference, id: &Digest) -> Result<()> {
        let path = self.name_path(name)?;
        if read_pointer(&path)? == Some(*id) {
            return Ok(());
        }
        let temporary = self.root().join("work").join(work::unique_name("name"));
        let linked = std::os::unix::fs::symlink(id.hex(), &temporary)
            .and_then(|()| std::fs::rename(&temporary, &path));
        if linked.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        linked.context(|| format!("name the image {name}"))?;
        super::sync_folder(&self.root().join("names"))
    }

    /// Removes a tag. The caller may remove.
    pub(super) fn unpoint(&self, name: &Reference) -> Result<()> {
        let path = self.name_path(name)?;
        std::fs::remove_file(&path).context(|| format!("remove {}", path.display()))
    }

    /// Every tag and what it leads to, sorted.
    pub(super) fn all_names(&self) -> Result<Vec<(Reference, Digest)>> {
        let folder = self.root().join("names");
        let mut names = Vec::new();
        for file in folder_names(&folder)? {
            let Ok(name) = Reference::parse(&file.replace('%', "/")) else { continue };
            // One that goes while this looks is not listed.
            names.extend(read_pointer(&folder.join(&file))?.map(|id| (name, id)));
        }
        names.sort();
        Ok(names)
    }

    /// The tags that lead to an image, sorted.
    pub(super) fn names_of(&self, id: &Digest) -> Result<Vec<Reference>> {
        Ok(self.all_names()?.into_iter().filter(|(_, to)| to == id).map(|(name, _)| name).collect())
    }
}

/// What a symbolic link of the store leads to.
pub(super) fn read_pointer(path: &Path) -> Result<Option<Digest>> {
    match std::fs::read_link(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(|| path.display().to_string()),
        Ok(target) => match target.to_str().and_then(Digest::from_hex) {
            Some(id) => Ok(Some(id)),
            None => Err(Error::new(format!(
                "{} leads to {}, which is no image",
                path.display(),
                target.display()
            ))),
        },
    }
}
