//! Images in the store: `images`, `rmi`, `tag`, `history`, `image prune`.

use clap::Args;
use moat_engine::image::{Image, Reference};

use super::each_line;
use crate::failure::{Failure, Result};
use crate::filter::Filters;
use crate::flags::list::{ListFlags, PruneFlags};
use crate::format::{self, Column, Format, Row, human};
use crate::line::Verb;
use crate::session::{Session, print};

#[derive(Args, Debug)]
pub(crate) struct Images {
    /// Also images in between (there are none: every image is shown anyway)
    #[arg(short, long, hide = true)]
    all: bool,
    /// Print the digests of registries
    #[arg(long)]
    digests: bool,
    #[command(flatten)]
    list: ListFlags,
    /// Print whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Only images of this name
    #[arg(value_name = "REPOSITORY[:TAG]")]
    name: Option<String>,
}

const COLUMNS: [Column; 9] = [
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("ID", "IMAGE ID"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("UniqueSize", "UNIQUE SIZE"),
];

const NONE: &str = "<none>";

impl Verb for Images {
    const NAME: &'static str = "images";
    const ABOUT: &'static str = "List images";

    fn run(self, session: &Session) -> Result<u8> {
        let format = self.list.format()?;
        let known = ["dangling", "label", "label!", "before", "since", "reference", "until"];
        let filters = self.list.filters(&known)?;
        let engine = session.engine()?;
        let wanted = Wanted::new(&engine, &filters)?;
        let mut rows = Vec::new();
        let mut ids = Vec::new();
        for image in engine.images().list()?.into_iter().filter(|image| wanted.fits(image)) {
            let id = match self.no_trunc {
                true => image.id.to_string(),
                false => short_id(&image),
            };
            for (repository, tag, digest) in names(&image, self.digests) {
                if !self.name.as_deref().is_none_or(|name| is_named(name, &repository, &tag)) {
                    continue;
                }
                if !filters.any("reference", |pattern| matches_reference(pattern, &repository, &tag)) {
                    continue;
                }
                if ids.last() != Some(&id) {
                    ids.push(id.clone());
                }
                let mut row = Row::default();
                row.set("Repository", repository)
                    .set("Tag", tag)
                    .set("Digest", digest)
                    .set("ID", id.as_str())
                    .set("CreatedSince", created(&image).map_or("N/A".to_owned(), |time| ago(time) + " ago"))
                    .set("CreatedAt", created(&image).map_or("N/A".to_owned(), human::local_time))
                    .set("Size", human::short_size(image.size_bytes))
                    .set("Containers", "N/A")
                    .set("UniqueSize", "N/A");
                rows.push(row);
            }
        }
        if self.list.is_quiet() {
            print(&each_line(&ids))?;
            return Ok(0);
        }
        let shown: &[&str] = match self.digests {
            true => &["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"],
            false => &["Repository", "Tag", "ID", "CreatedSince", "Size"],
        };
        print(&format::rows(&format, shown, &COLUMNS, rows)?)?;
        Ok(0)
    }
}

/// Twelve digits of an image's id.
pub(super) fn short_id(image: &Image) -> String {
    image.id.hex().chars().take(12).collect()
}

/// When an image was made, in nanoseconds since 1970.
pub(super) fn created(image: &Image) -> Option<i128> {
    let stamp: jiff::Timestamp = image.created.as_deref()?.parse().ok()?;
    // Images that are made to be the same every time say a time long ago, or none.
    Some(stamp.as_nanosecond()).filter(|time| *time > 0)
}

/// How long ago a time was, in words.
pub(super) fn ago(nanoseconds: i128) -> String {
    let seconds = (jiff::Timestamp::now().as_nanosecond() - nanoseconds) / 1_000_000_000;
    human::duration(u64::try_from(seconds).unwrap_or(0))
}

/// Repository, tag and digest of each line that an image gets.
fn names(image: &Image, digests: bool) -> Vec<(String, String, String)> {
    let none = || NONE.to_owned();
    let digest_of = |repository: &str| {
        let known = image.digests.iter().find(|known| known.repository() == repository);
        known.and_then(|known| known.digest()).map_or_else(none, |digest| digest.to_string())
    };
    let mut lines: Vec<_> = image
        .names
        .iter()
        .map(|name| {
            let repository = name.repository();
            let digest = if digests { digest_of(&repository) } else { none() };
            (repository, name.tag().map_or_else(none, str::to_owned), digest)
        })
        .collect();
    if lines.is_empty() {
        // One that lost its tag to a newer one is still known by where it came from.
        let from = image.digests.first();
        let digest = from.and_then(|from| from.digest()).map_or_else(none, |digest| digest.to_string());
        lines.push((from.map_or_else(none, Reference::repository), none(), digest));
    }
    lines
}

/// Whether a name that was given means a line: without a tag it means all tags.
fn is_named(name: &str, repository: &str, tag: &str) -> bool {
    match Reference::parse_exact(name) {
        Ok(wanted) => wanted.repository() == repository && wanted.tag().is_none_or(|wanted| wanted == tag),
        Err(_) => matches_reference(name, repository, tag),
    }
}

/// Whether a pattern with `*` and `?` fits; without a tag it fits every tag.
fn matches_reference(pattern: &str, repository: &str, tag: &str) -> bool {
    let whole = format!("{repository}:{tag}");
    let last_colon = pattern.rfind(':').filter(|at| !pattern[*at..].contains('/'));
    let text = if last_colon.is_some() { &whole } else { repository };
    wildcard(pattern.as_bytes(), text.as_bytes())
}

/// `*` is anything but a slash, `?` one such character.
fn wildcard(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            let end = text.iter().position(|byte| *byte == b'/').unwrap_or(text.len());
            (0..=end).any(|skip| wildcard(rest, text.get(skip..).unwrap_or_default()))
        }
        (Some((b'?', rest)), Some((byte, text))) if *byte != b'/' => wildcard(rest, text),
        (Some((wanted, rest)), Some((byte, text))) if wanted == byte => wildcard(rest, text),
        _ => false,
    }
}

/// What the filters of `images` and `image prune` ask for.
struct Wanted<'a> {
    filters: &'a Filters,
    dangling: Option<bool>,
    before: Option<i128>,
    since: Option<i128>,
    until: Option<i128>,
}

impl<'a> Wanted<'a> {
    fn new(engine: &moat_engine::Engine, filters: &'a Filters) -> Result<Self> {
        let time = |key: &str| match filters.of(key) {
            [] => Ok(None),
            [name, ..] => Ok::<_, Failure>(created(&engine.images().find(name)?)),
        };
        let until = match filters.of("until") {
            [] => None,
            [text, ..] => Some(
                crate::flags::duration::parse_time(text, jiff::Timestamp::now())
                    .map_err(|error| Failure::new(format!("--filter until: {error}")))?,
            ),
        };
        let dangling = filters.truth("dangling")?;
        Ok(Self { filters, dangling, before: time("before")?, since: time("since")?, until })
    }

    fn fits(&self, image: &Image) -> bool {
        let created = created(image).unwrap_or(0);
        self.dangling.is_none_or(|dangling| dangling == image.names.is_empty())
            && self.before.is_none_or(|time| created < time)
            && self.since.is_none_or(|time| created > time)
            && self.until.is_none_or(|time| created < time)
            && self.filters.labels(&image.config.config.labels)
    }
}

#[derive(Args, Debug)]
pub(crate) struct RemoveImage {
    /// Remove all names; an image that a workload uses goes with it
    #[arg(short, long)]
    force: bool,
    /// Image
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
}

impl Verb for RemoveImage {
    const NAME: &'static str = "rmi";
    const ABOUT: &'static str = "Remove images";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        super::each(&self.images, |name| {
            let removed = engine.images().remove(name, self.force)?;
            let untagged = removed.untagged.iter().map(|name| format!("Untagged: {name}"));
            let deleted = removed.deleted.iter().map(|id| format!("Deleted: {id}"));
            let lines: Vec<String> = untagged.chain(deleted).collect();
            Ok((!lines.is_empty()).then(|| lines.join("\n")))
        })
    }
}

#[derive(Args, Debug)]
pub(crate) struct Tag {
    /// Image
    image: String,
    /// Its further name, as NAME[:TAG]
    name: String,
}

impl Verb for Tag {
    const NAME: &'static str = "tag";
    const ABOUT: &'static str = "Give an image a further name";

    fn run(self, session: &Session) -> Result<u8> {
        let engine = session.engine()?;
        let image = engine.images().find(&self.image)?;
        engine.images().tag(&image, &Reference::parse(&self.name)?)?;
        Ok(0)
    }
}

#[derive(Args, Debug)]
pub(crate) struct History {
    /// Form of the answer: table, json, or a Go template
    #[arg(long)]
    format: Option<String>,
    /// Sizes and times for people
    #[arg(short = 'H', long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value = "true", hide_default_value = true,
        action = clap::ArgAction::Set, value_parser = crate::flags::boolean)]
    human: bool,
    /// Print all of everything
    #[arg(long)]
    no_trunc: bool,
    /// Only ids
    #[arg(short, long)]
    quiet: bool,
    /// Image
    image: String,
}

const HISTORY: [Column; 6] = [
    ("ID", "IMAGE"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("CreatedBy", "CREATED BY"),
    ("Size", "SIZE"),
    ("Comment", "COMMENT"),
];

impl Verb for History {
    const NAME: &'static str = "history";
    const ABOUT: &'static str = "Print how an image came to be";

    fn run(self, session: &Session) -> Result<u8> {
        let format = Format::parse(self.format.as_deref())?;
        let engine = session.engine()?;
        let image = engine.images().find(&self.image)?;
        let mut rows = Vec::new();
        let mut ids = Vec::new();
        // The newest first. Only the last line is an image of the store.
        for (at, line) in engine.images().history(&image).into_iter().rev().enumerate() {
            let id = match at {
                0 if self.no_trunc => image.id.to_string(),
                0 => short_id(&image),
                _ => "<missing>".to_owned(),
            };
            let by = line.entry.created_by.unwrap_or_default().replace('\t', " ");
            let made = line.entry.created.as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
            let made = made.map(jiff::Timestamp::as_nanosecond).filter(|time| *time > 0);
            let exact = made.map_or("N/A".to_owned(), human::local_time);
            let mut row = Row::default();
            row.set("ID", id.as_str())
                .set(
                    "CreatedSince",
                    match self.human {
                        true => made.map_or("N/A".to_owned(), |time| ago(time) + " ago"),
                        false => exact.clone(),
                    },
                )
                .set("CreatedAt", exact)
                .set("CreatedBy", if self.no_trunc { by } else { human::ellipsis(&by, 45) })
                .set(
                    "Size",
                    match self.human {
                        true => human::short_size(line.size_bytes),
                        false => line.size_bytes.to_string(),
                    },
                )
                .set("Comment", line.entry.comment.unwrap_or_default());
            rows.push(row);
            ids.push(id);
        }
        if self.quiet && self.format.is_none() {
            print(&each_line(&ids))?;
            return Ok(0);
        }
        let shown = ["ID", "CreatedSince", "CreatedBy", "Size", "Comment"];
        print(&format::rows(&format, &shown, &HISTORY, rows)?)?;
        Ok(0)
    }
}

#[derive(Args, Debug)]
pub(crate) struct PruneImages {
    /// All images that no workload uses, not only those without a name
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    prune: PruneFlags,
}

impl Verb for PruneImages {
    const NAME: &'static str = "prune";
    const ABOUT: &'static str = "Remove images that nothing uses";

    fn run(self, session: &Session) -> Result<u8> {
        let filters = self.prune.filters(&["until", "label", "label!", "dangling"])?;
        let engine = session.engine()?;
        let wanted = Wanted::new(&engine, &filters)?;
        let all = self.all || wanted.dangling == Some(false);
        let what = if all { "all images that no workload uses" } else { "all images without a name" };
        if !self.prune.agreed(what)? {
            return Ok(0);
        }
        let fits = |image: &Image| {
            wanted.until.is_none_or(|time| created(image).unwrap_or(0) < time)
                && filters.labels(&image.config.config.labels)
        };
        let pruned = engine.images().prune(all, &fits)?;
        let mut text = String::new();
        if !pruned.removed.untagged.is_empty() || !pruned.removed.deleted.is_empty() {
            text += "Deleted Images:\n";
            text +=
                &pruned.removed.untagged.iter().map(|name| format!("untagged: {name}\n")).collect::<String>();
            text += &pruned.removed.deleted.iter().map(|id| format!("deleted: {id}\n")).collect::<String>();
            text += "\n";
        }
        text += &format!("Total reclaimed space: {}\n", human::size(pruned.reclaimed_bytes));
        print(&text)?;
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::matches_reference;

    #[test]
    fn patterns_of_references() {
        for (pattern, fits) in [
            ("busybox", true),
            ("busy*", true),
            ("b?sybox", true),
            ("busybox:1*", true),
            ("busybox:2*", false),
            ("*:*", true),
            ("other", false),
        ] {
            assert_eq!(matches_reference(pattern, "busybox", "1.36"), fits, "{pattern}");
        }
        assert!(!matches_reference("*", "a/b", "1"));
        assert!(matches_reference("*/*", "a/b", "1"));
        assert!(matches_reference("localhost:5000/*", "localhost:5000/b", "1"));
    }
}
