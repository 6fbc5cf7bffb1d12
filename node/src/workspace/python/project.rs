//! The question that uv is asked: a `pyproject.toml` of pins and asks, with the index of each package.
//!
//! Pure. Each pin is a requirement of its own, because only those can name an index that nothing else is
//! taken from: a package of the usual index is never looked for in torch's. Not here: the answer.

use std::collections::BTreeMap;

use protocol::{EnvironmentSpec, PackagePin, Pin, TORCH_FAMILY, is_torch_family, normalized};
use serde::Serialize;

use super::ask::{Origin, Requirement};
use super::{Indexes, PythonError};

/// The pip of every environment that pins none: custom nodes call it as they are imported, to see that they have all that
/// they need, and no `pip freeze` names it. It runs on Python 3.9 and later.
pub(crate) const PINNED_PIP: &str = "25.3";

/// A question for uv.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Project {
    /// The `pyproject.toml`.
    pub(super) toml: String,
    /// The pins, as `name==version`.
    pub(super) pins: Vec<String>,
}

/// The pins of an environment by name; a package that is pinned twice is refused.
pub(super) fn pins(spec: &EnvironmentSpec) -> Result<BTreeMap<String, &PackagePin>, PythonError> {
    let mut pins: BTreeMap<String, &PackagePin> = BTreeMap::new();
    for package in &spec.packages {
        let name = normalized(package.name.as_str());
        if let Some(first) = pins.get(&name).filter(|first| first.pin != package.pin) {
            let (first, second) = (shown(&first.pin), shown(&package.pin));
            return Err(PythonError::TwoVersions { name, first, second });
        }
        pins.insert(name, package);
    }
    Ok(pins)
}

fn shown(pin: &Pin) -> String {
    match pin {
        Pin::Version(version) => version.to_string(),
        Pin::Url(url) => url.to_string(),
        Pin::Git(url) => url.to_string(),
    }
}

impl Project {
    /// The question for these pins and asks, with this build of the torch family (empty: the plain one). `built` has the
    /// address of the wheel of each package of a repository.
    pub(super) fn new(
        pins: &BTreeMap<String, &PackagePin>,
        asks: &[Requirement],
        built: &BTreeMap<String, String>,
        python: &str,
        indexes: &Indexes,
        build: &str,
    ) -> Self {
        let mut project = Self { toml: String::new(), pins: Vec::new() };
        let mut sources = Sources::default();
        let mut dependencies = Vec::new();
        if !pins.contains_key("pip") {
            project.pins.push(format!("pip=={PINNED_PIP}"));
            dependencies.push(format!("pip=={PINNED_PIP}"));
        }
        for (name, package) in pins {
            dependencies.push(match &package.pin {
                Pin::Url(url) => format!("{name} @ {url}"),
                Pin::Git(url) => match built.get(name) {
                    Some(wheel) => format!("{name} @ {wheel}"),
                    None => format!("{name} @ git+{url}"),
                },
                Pin::Version(version) if is_torch_family(name) => {
                    let release = version.as_str().split('+').next().unwrap_or_default();
                    sources.add(name, indexes.of_pin(package, build));
                    let local = if build.is_empty() { String::new() } else { format!("+{build}") };
                    project.pins.push(format!("{name}=={release}{local}"));
                    format!("{name}=={release}{local}")
                }
                Pin::Version(version) => {
                    sources.add(name, package.index.as_ref().map(ToString::to_string));
                    project.pins.push(format!("{name}=={version}"));
                    format!("{name}=={version}")
                }
            });
        }
        for ask in asks {
            // The recorded version was what ran, wherever a custom node would have it from.
            if ask.origin.is_some() && pins.contains_key(&ask.name) {
                continue;
            }
            if is_torch_family(&ask.name) && ask.origin.is_none() {
                sources.add(&ask.name, indexes.of_build(release_of_family(pins), build));
            }
            dependencies.push(match (&ask.origin, built.get(&ask.name)) {
                (Some(Origin::Repository(url)), Some(wheel)) => {
                    ask.text.replacen(&format!("git+{url}"), wheel, 1)
                }
                _ => ask.text.clone(),
            });
        }
        let head =
            Head { name: "workspace", version: "0", requires_python: format!(">={python}"), dependencies };
        let table = Table { project: head, tool: Tool { uv: sources } };
        project.toml = toml::to_string(&table).expect("it has only text keys and no table before a value");
        project
    }

    /// The pins that can stand against what packages ask for. Those of the torch family cannot, because uv would
    /// look for them in the usual index then.
    pub(super) fn overrides(&self) -> Vec<&str> {
        let is_family = |pin: &str| pin.split("==").next().is_some_and(is_torch_family);
        self.pins.iter().map(String::as_str).filter(|pin| !is_family(pin)).collect()
    }
}

/// The release of torch that is pinned, or of one of its family.
fn release_of_family<'a>(pins: &BTreeMap<String, &'a PackagePin>) -> &'a str {
    let version = |name: &&str| match &pins.get(*name)?.pin {
        Pin::Version(version) => Some(version.as_str()),
        Pin::Url(_) | Pin::Git(_) => None,
    };
    TORCH_FAMILY.iter().find_map(version).unwrap_or_default()
}

#[derive(Serialize)]
struct Table {
    project: Head,
    tool: Tool,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Head {
    name: &'static str,
    version: &'static str,
    requires_python: String,
    dependencies: Vec<String>,
}

#[derive(Serialize)]
struct Tool {
    uv: Sources,
}

#[derive(Default, Serialize)]
struct Sources {
    index: Vec<Index>,
    sources: BTreeMap<String, Source>,
}

#[derive(Serialize)]
struct Index {
    name: String,
    url: String,
    explicit: bool,
}

#[derive(Serialize)]
struct Source {
    index: String,
}

impl Sources {
    fn add(&mut self, package: &str, url: Option<String>) {
        let Some(url) = url else { return };
        let known = self.index.iter().find(|index| index.url == url).map(|index| index.name.clone());
        let name = known.unwrap_or_else(|| {
            let name = format!("index-{}", self.index.len());
            self.index.push(Index { name: name.clone(), url, explicit: true });
            name
        });
        self.sources.insert(package.to_owned(), Source { index: name });
    }
}

#[cfg(test)]
mod tests {
    use protocol::{Accelerator, Lockfile};

    use super::*;

    fn spec(packages: &str) -> EnvironmentSpec {
        let lockfile = format!(r#"{{"format":1,"packages":{packages}}}"#);
        let lockfile = Lockfile::parse(lockfile.as_bytes()).expect("a lockfile");
        EnvironmentSpec::of(&lockfile, "linux-x86_64", Accelerator::Cpu)
    }

    #[test]
    fn each_package_is_asked_of_its_own_index() {
        let spec = spec(
            r#"[{"name":"torch","version":"2.6.0+cu124"},{"name":"Torch_Audio","version":"1"},
            {"name":"pillow","version":"11.0.0"},{"name":"clip","git":"https://github.com/a/clip@abc"},
            {"name":"odd","version":"1","index":"https://packages.example.org/simple"}]"#,
        );
        let pins = pins(&spec).expect("no package twice");
        let ask = |name: &str, text: &str, origin: Option<&str>| Requirement {
            name: name.to_owned(),
            origin: origin.map(|url| Origin::Archive(url.parse().expect("an address"))),
            text: text.to_owned(),
        };
        let asks = [
            ask("torchvision", "torchvision", None),
            ask("pillow", "pillow @ https://example.org/p.whl", Some("https://example.org/p.whl")),
            ask("tqdm", "tqdm>=4", None),
            Requirement {
                name: "sam".to_owned(),
                origin: Some(Origin::Repository("https://github.com/a/sam@abc".parse().expect("an address"))),
                text: "sam[all] @ git+https://github.com/a/sam@abc ; python_version>'3'".to_owned(),
            },
        ];
        let built = ["clip", "sam"].map(|name| (name.to_owned(), format!("file:///x/{name}.whl"))).into();
        let project = Project::new(&pins, &asks, &built, "3.11", &Indexes::default(), "cpu");
        let expected = r#"[project]
name = "workspace"
version = "0"
requires-python = ">=3.11"
dependencies = ["pip==25.3", "clip @ file:///x/clip.whl", "odd==1", "pillow==11.0.0", "torch==2.6.0+cpu", "torch-audio==1", "torchvision", "tqdm>=4", "sam[all] @ file:///x/sam.whl ; python_version>'3'"]

[[tool.uv.index]]
name = "index-0"
url = "https://packages.example.org/simple"
explicit = true

[[tool.uv.index]]
name = "index-1"
url = "https://download.pytorch.org/whl/cpu"
explicit = true

[tool.uv.sources.odd]
index = "index-0"

[tool.uv.sources.torch]
index = "index-1"

[tool.uv.sources.torchvision]
index = "index-1"
"#;
        assert_eq!(project.toml, expected);
        assert_eq!(
            project.pins,
            ["pip==25.3", "odd==1", "pillow==11.0.0", "torch==2.6.0+cpu", "torch-audio==1"]
        );
    }

    #[test]
    fn build_of_a_night_and_what_goes_with_it_are_asked_of_the_index_of_nights() {
        let spec = spec(r#"[{"name":"torch","version":"2.8.0.dev20250601+cu128"}]"#);
        let pins = pins(&spec).expect("no package twice");
        let vision =
            Requirement { name: "torchvision".to_owned(), origin: None, text: "torchvision".to_owned() };
        let built = BTreeMap::new();
        let project = Project::new(&pins, &[vision], &built, "3.11", &Indexes::default(), "cu128");
        assert_eq!(project.pins, ["pip==25.3", "torch==2.8.0.dev20250601+cu128"]);
        let indexes: Vec<&str> = project.toml.lines().filter(|line| line.starts_with("url = ")).collect();
        assert_eq!(indexes, [r#"url = "https://download.pytorch.org/whl/nightly/cu128""#]);
        assert_eq!(project.toml.matches(r#"index = "index-0""#).count(), 2, "{}", project.toml);
    }

    #[test]
    fn package_that_is_pinned_twice_is_named() {
        let twice = spec(r#"[{"name":"Pillow","version":"11.0.0"},{"name":"pillow","version":"10.0.0"}]"#);
        let error = pins(&twice).expect_err("it is pinned twice");
        assert_eq!(error.to_string(), "package `pillow` is pinned to two versions, `11.0.0` and `10.0.0`");
        let same = spec(r#"[{"name":"Pillow","version":"11.0.0"},{"name":"pillow","version":"11.0.0"}]"#);
        assert_eq!(pins(&same).expect("one version").len(), 1);
    }
}
