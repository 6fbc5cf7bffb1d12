//! What ComfyUI and custom nodes ask for in their `requirements.txt`, line by line.
//!
//! Pure. Only names, versions and archives are taken from it: which index is asked, and which files of this
//! machine are read, is never a stranger's to say. Not here: whether the asks go together.

use protocol::{EnvironmentSpec, FolderPath, GitSource, GitUrl, HttpsUrl, Pin, normalized};

use super::marker::is_false;
use crate::policy::CodeSource;

/// Why an address is not followed.
const NO_ADDRESS: &str = "only https addresses of public hosts are, and ssh of known forges is read as https";
/// The most characters of a line that cannot be read that are shown.
const LONGEST_SHOWN: usize = 200;

/// One `requirements.txt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// Whose it is, for messages, such as `custom_nodes/some-nodes/requirements.txt`.
    pub from: String,
    /// Its contents.
    pub text: String,
}

/// One line that asks for a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Requirement {
    /// The package's name, as indexes compare it.
    pub(super) name: String,
    /// Where it comes from, where it names that and no version.
    pub(super) origin: Option<Origin>,
    /// The line as PEP 508 writes it.
    pub(super) text: String,
}

/// What a package comes from that no index has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// An archive.
    Archive(HttpsUrl),
    /// A repository, with what is wanted of it behind an `@`.
    Repository(GitUrl),
}

/// What a file asks for, and its lines that are not obeyed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Asked {
    /// What it asks for.
    pub(super) requirements: Vec<Requirement>,
    /// Options, such as another index, and what cannot be read, each with the reason.
    pub(super) ignored: Vec<(String, &'static str)>,
}

impl Ask {
    /// Whether every package that it asks for is pinned: then it changes nothing, because pins stand.
    pub fn is_pinned_by(&self, spec: &EnvironmentSpec) -> bool {
        let is_pinned = |asked: &Requirement| {
            // An extra asks for more packages.
            let has_extra = asked.text.contains('[');
            !has_extra && spec.packages.iter().any(|package| normalized(package.name.as_str()) == asked.name)
        };
        self.read(spec).requirements.iter().all(is_pinned)
    }

    /// What it takes from elsewhere than an index. Where a package is pinned, the pin stands.
    pub fn sources(&self, spec: &EnvironmentSpec) -> Vec<CodeSource> {
        let is_pinned = |asked: &Requirement| {
            spec.packages.iter().any(|package| normalized(package.name.as_str()) == asked.name)
        };
        let source = |asked: &Requirement| {
            let host = match asked.origin.as_ref()? {
                Origin::Archive(url) => url.host(),
                Origin::Repository(url) => url.host(),
            };
            Some(CodeSource { what: format!("package `{}` of `{}`", asked.name, self.from), host })
        };
        let asked = self.read(spec).requirements;
        asked.iter().filter(|asked| !is_pinned(asked)).filter_map(source).collect()
    }

    /// Reads it, as one in this environment. What comes from elsewhere than an index and is for other machines is left out:
    /// it is judged and built before uv reads the markers. What cannot be read is left out as options are: its author's
    /// machine may not have had it either, and whether the workflow's ops are there without it is seen in the end.
    pub(super) fn read(&self, spec: &EnvironmentSpec) -> Asked {
        let mut asked = Asked::default();
        let joined = self.text.trim_start_matches('\u{feff}').replace("\r\n", "\n").replace("\\\n", " ");
        for line in joined.lines() {
            let line = without_comment(line);
            if line.is_empty() {
                continue;
            }
            if line.starts_with('-') {
                asked.ignored.push((line.to_owned(), "options are not a custom node's to choose"));
                continue;
            }
            let requirement = match Requirement::parse(line, spec) {
                Ok(requirement) => requirement,
                Err(reason) => {
                    asked.ignored.push((line.chars().take(LONGEST_SHOWN).collect(), reason));
                    continue;
                }
            };
            let marker = requirement.origin.as_ref().and_then(|_| requirement.marker());
            if !marker.is_some_and(|marker| is_false(marker, spec)) {
                asked.requirements.push(requirement);
            }
        }
        asked
    }
}

impl Requirement {
    fn parse(line: &str, spec: &EnvironmentSpec) -> Result<Self, &'static str> {
        // Options of one line, such as its hashes, stand behind it.
        let text = line.split(" --").next().unwrap_or_default().trim();
        if text.starts_with("git+") {
            return Self::repository(text, spec);
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let end = text.find(|c| !is_name(c)).unwrap_or(text.len());
        let (name, rest) = (&text[..end], text[end..].trim_start());
        if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Err("it begins with no name of a package");
        }
        let file = |name: &str| [".whl", ".tar.gz", ".zip"].iter().any(|end| name.ends_with(end));
        if rest.starts_with(['/', ':', '\\']) || file(name) {
            return Err("only names of packages are taken, no paths and no bare URLs");
        }
        if !(rest.is_empty() || rest.starts_with(['=', '<', '>', '!', '~', '[', ';', '@', '('])) {
            return Err("it is not written as PEP 508 says");
        }
        let url = rest
            .strip_prefix(|c| c == '[')
            .and_then(|rest| rest.split_once(']'))
            .map_or(rest, |(_, rest)| rest);
        // A marker may stand behind it.
        let url = url.trim_start().strip_prefix('@').and_then(|url| url.split_whitespace().next());
        let origin = url.map(Origin::read).transpose()?;
        let text = match (&origin, url) {
            // Its ssh address was read as the https one.
            (Some(Origin::Repository(read)), Some(url)) => text.replacen(url, &format!("git+{read}"), 1),
            _ => text.to_owned(),
        };
        Ok(Self { name: normalized(name), origin, text })
    }

    /// When it asks, where it comes from elsewhere than an index.
    fn marker(&self) -> Option<&str> {
        // One that belongs to an address has no space before it.
        let mut semicolons = self.text.match_indices(';').map(|(at, _)| self.text.split_at(at));
        let (_, marker) = semicolons.find(|(before, _)| before.ends_with(char::is_whitespace))?;
        marker.strip_prefix(';')
    }

    /// A bare repository. Where it does not say which package it is, that is the one that is pinned to the same repository,
    /// else one that is called as the repository; a build tells whether it is.
    fn repository(text: &str, spec: &EnvironmentSpec) -> Result<Self, &'static str> {
        // A marker may stand behind it.
        let (address, marker) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let (address, fragment) = address.split_once('#').unwrap_or((address, ""));
        let part =
            |name: &str| fragment.split('&').find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        let folder = part("subdirectory");
        let name = match part("egg") {
            Some(egg) => egg.split('[').next().unwrap_or_default().to_owned(),
            None => {
                let Origin::Repository(url) = Origin::read(address)? else { return Err(NO_ADDRESS) };
                name_of(&url, folder, spec)
            }
        };
        let folder = folder.map(|folder| format!("#subdirectory={folder}")).unwrap_or_default();
        Self::parse(format!("{name} @ {address}{folder} {marker}").trim_end(), spec)
    }
}

/// Which package a repository is most likely.
fn name_of(url: &GitUrl, folder: Option<&str>, spec: &EnvironmentSpec) -> String {
    let (scheme, path) = url.as_str().split_once("://").unwrap_or_default();
    let url = format!("{scheme}://{}", path.split_once('@').map_or(path, |(path, _)| path)).parse::<GitUrl>();
    let Ok(url) = url else { return String::new() };
    let is_it = |source: &GitSource| {
        let below = source.subdirectory.as_ref().map(FolderPath::as_str);
        source.url.bare().eq_ignore_ascii_case(url.bare()) && below == folder
    };
    let pinned = spec.packages.iter().find(
        |package| matches!(&package.pin, Pin::Git(pin) if GitSource::of(pin).as_ref().is_some_and(is_it)),
    );
    match (pinned, folder) {
        (Some(package), _) => package.name.to_string(),
        (None, Some(folder)) => folder.rsplit('/').next().unwrap_or_default().to_owned(),
        (None, None) => url.folder().to_owned(),
    }
}

impl Origin {
    fn read(url: &str) -> Result<Self, &'static str> {
        let read = match url.strip_prefix("git+") {
            // What strangers wrote into theirs is no reason to look about in the owner's network.
            Some(url) => url.parse().ok().filter(GitUrl::is_public).map(Self::Repository),
            None => url.parse().ok().map(Self::Archive),
        };
        read.ok_or(NO_ADDRESS)
    }
}

fn without_comment(line: &str) -> &str {
    let line = line.trim();
    if line.starts_with('#') {
        return "";
    }
    line.split(" #").next().unwrap_or_default().split("\t#").next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use protocol::{Accelerator, Lockfile};

    use super::*;

    fn ask(text: &str) -> Asked {
        let lockfile = Lockfile::parse(br#"{"format":1,"python":"3.11"}"#).expect("a lockfile");
        let spec = EnvironmentSpec::of(&lockfile, "linux-x86_64", Accelerator::Cpu);
        Ask { from: "requirements.txt".to_owned(), text: text.to_owned() }.read(&spec)
    }

    #[test]
    fn ask_for_what_is_pinned_changes_nothing() {
        let lockfile = Lockfile::parse(
            br#"{"format":1,"packages":[{"name":"Torch","version":"2.6.0"},{"name":"kornia","version":"0.7"}]}"#,
        );
        let spec = EnvironmentSpec::of(&lockfile.expect("a lockfile"), "linux-x86_64", Accelerator::Cpu);
        let is_pinned = |text: &str| Ask { from: "x".to_owned(), text: text.to_owned() }.is_pinned_by(&spec);
        assert!(is_pinned("torch\nkornia>=0.8\n") && is_pinned("# nothing\n"));
        assert!(!is_pinned("torch\nscipy\n") && !is_pinned("kornia[x]\n"));
    }

    #[test]
    fn names_versions_and_markers_are_taken_and_options_are_not() {
        let text = "\u{feff}# ComfyUI\r\ntorch\r\nTransformers>=4.50.3 # newer\nkornia>=0.7.1;python_version>'3'\n\
            --extra-index-url https://evil.example/simple\n-r more.txt\n\npydantic~=2.0 --hash=sha256:00\n\
            some[extra]>=1,\\\n<2\nlong @ https://example.org/long-1-py3-none-any.whl\n\
            sam @ git+ssh://git@codeberg.org/a/sam.git@abc ; python_version>'3'\n\
            win @ git+https://github.com/a/win.git ; sys_platform=='win32'\n\
            git+https://github.com/a/mac.git#egg=mac ; sys_platform=='darwin'\ngit+https://github.com/a/clip.git#egg=clip\n";
        let asked = ask(text);
        let texts: Vec<&str> =
            asked.requirements.iter().map(|requirement| requirement.text.as_str()).collect();
        assert_eq!(
            texts,
            [
                "torch",
                "Transformers>=4.50.3",
                "kornia>=0.7.1;python_version>'3'",
                "pydantic~=2.0",
                "some[extra]>=1, <2",
                "long @ https://example.org/long-1-py3-none-any.whl",
                "sam @ git+https://codeberg.org/a/sam.git@abc ; python_version>'3'",
                "clip @ git+https://github.com/a/clip.git",
            ]
        );
        assert_eq!(asked.requirements[1].name, "transformers");
        let hosts = |pinned: &str| {
            let lockfile = format!(r#"{{"format":1,"packages":[{{"name":"{pinned}","version":"1"}}]}}"#);
            let lockfile = Lockfile::parse(lockfile.as_bytes()).expect("a lockfile");
            let spec = EnvironmentSpec::of(&lockfile, "linux-x86_64", Accelerator::Cpu);
            let ask = Ask { from: "x/requirements.txt".to_owned(), text: text.to_owned() };
            ask.sources(&spec)
                .into_iter()
                .map(|source| format!("{}: {}", source.what, source.host))
                .collect::<Vec<_>>()
        };
        let of = |name: &str, host: &str| format!("package `{name}` of `x/requirements.txt`: {host}");
        let long = of("long", "example.org");
        assert_eq!(hosts("torch"), [long.clone(), of("sam", "codeberg.org"), of("clip", "github.com")]);
        assert_eq!(hosts("Sam"), [long, of("clip", "github.com")], "a pin stands");
        let ignored: Vec<&str> = asked.ignored.iter().map(|(line, _)| line.as_str()).collect();
        assert_eq!(ignored, ["--extra-index-url https://evil.example/simple", "-r more.txt"]);
    }

    #[test]
    fn bare_repository_is_the_package_that_is_pinned_to_it_else_one_of_its_name() {
        let check = |line: &str, expected: &str, is_pinned: bool| {
            let pin = format!("https://github.com/OpenAI/CLIP.git@{}", "1".repeat(40));
            let lockfile = format!(
                r#"{{"format":1,"packages":[{{"name":"clip-by-openai","git":"{pin}"}},
                    {{"name":"part","git":"{pin}#subdirectory=a/b"}}]}}"#
            );
            let lockfile = Lockfile::parse(lockfile.as_bytes()).expect("a lockfile");
            let spec = EnvironmentSpec::of(&lockfile, "linux-x86_64", Accelerator::Cpu);
            let ask = Ask { from: "requirements.txt".to_owned(), text: line.to_owned() };
            let asked = ask.read(&spec);
            assert_eq!(asked.requirements[0].text, expected, "{line}: {:?}", asked.ignored);
            assert_eq!(ask.is_pinned_by(&spec), is_pinned, "{line}");
            assert_eq!(ask.sources(&spec).is_empty(), is_pinned, "{line}");
        };
        let clip = "clip-by-openai @ git+https://github.com/openai/CLIP";
        check("git+https://github.com/openai/CLIP", clip, true);
        check("git+https://github.com/openai/CLIP.git@main", &format!("{clip}.git@main"), true);
        check("git+ssh://git@github.com/openai/CLIP.git", &format!("{clip}.git"), true);
        let part = "part @ git+https://github.com/openai/CLIP#subdirectory=a/b";
        check("git+https://github.com/openai/CLIP#subdirectory=a/b", part, true);
        let sam = "sam @ git+https://github.com/a/sam.git ; python_version>'3'";
        check("git+https://github.com/a/sam.git ; python_version>'3'", sam, false);
    }

    #[test]
    fn paths_other_schemes_and_nonsense_are_left_out_and_named() {
        for line in [
            "./wheel.whl",
            "/etc/passwd",
            "thing-1-py3-none-any.whl",
            "https://example.org/a.whl",
            "git+file:///etc",
            "git+https://10.0.0.1/a.git",
            "a @ file:///etc/passwd",
            "a @ git+file:///etc",
            "a @ https://github.com@evil.example/a.whl",
            "a @ https://github.com\\@evil.example/a.whl",
            "a @ https://10.0.0.1/a.whl",
            "a @ git+https://printer.local/a.git",
            "a @ git+ssh://git@forge.example/a.git",
            "two words",
        ] {
            let asked = ask(&format!("torch\n{line}\nscipy\n"));
            let names: Vec<&str> = asked.requirements.iter().map(|asked| asked.name.as_str()).collect();
            assert_eq!(names, ["torch", "scipy"], "{line}");
            assert_eq!(asked.ignored[0].0, line);
        }
    }
}
