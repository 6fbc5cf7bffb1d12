//! Pins and asks become a lock: uv completes them, and each package gets the one file for this machine.
//!
//! Not here: fetching those files.

use std::collections::BTreeMap;

use protocol::{
    Accelerator, BuildSource, BuiltWheel, EnvironmentLock, EnvironmentSpec, LockedFile, LockedWheel,
    PackagePin, Pin, Sha256, TORCH_FAMILY, WebUrl, hashes_of, is_torch_family,
};
use tokio_util::sync::CancellationToken;

use super::ask::{Ask, Requirement};
use super::complete::Completing;
use super::error::WrongHash;
use super::interpreter::minor_of;
use super::project::{Project, pins};
use super::pylock::{File, Package};
use super::repositories::{addresses, built, sources};
use super::source::Building;
use super::tags::Tags;
use super::torch::without_user;
use super::{Limits, PythonError, Uv, WheelSource};
use crate::workspace::log::PrepareLog;

/// Completes pins.
#[derive(Clone, Debug)]
pub struct Resolver {
    /// Which uv.
    pub uv: Uv,
    /// How long it may take.
    pub limits: Limits,
    /// Whether a package without a wheel may be built from its source, which runs its code.
    pub build_sources: bool,
}

impl Resolver {
    /// Completes the pins of an environment with what ComfyUI and its custom nodes ask for.
    pub async fn resolve(
        &self,
        spec: &EnvironmentSpec,
        asks: &[Ask],
        files: &dyn WheelSource,
        log: &PrepareLog,
        cancel: &CancellationToken,
    ) -> Result<EnvironmentLock, PythonError> {
        let pins = pins(spec)?;
        let asked = read(asks, spec, log);
        let wanted = spec.python.as_ref().ok_or(PythonError::PythonUnknown)?;
        let python = self.uv.python(wanted, log, cancel).await?;
        let recorded = recorded_build(&pins);
        let indexes = &self.uv.config.indexes;
        let mut builds = indexes.builds(recorded, spec.accelerator).into_iter().peekable();
        let workshop = self.uv.workshop()?;
        let building = Building { uv: &self.uv, python: &python, limit: self.limits.build, log, cancel };
        let built = built(sources(&pins, &asked, self.build_sources)?, &building, files).await?;
        let addresses = addresses(&built, workshop.path())?;
        let completing = Completing {
            uv: &self.uv,
            limit: self.limits.resolve,
            build_sources: self.build_sources,
            python: &python,
            workshop: &workshop,
            log,
            cancel,
        };
        let (packages, build) = loop {
            let build = builds.next().unwrap_or_default();
            let minor = minor_of(python.version.as_str());
            let project = Project::new(&pins, &asked, &addresses, &minor, indexes, &build);
            match completing.complete(&project).await {
                Ok(packages) => break (packages, build),
                // This build may just not exist of that version; the last one's conflict is told.
                Err(PythonError::Conflict { explanation, .. })
                    if builds.peek().is_some() && explanation.contains("torch") =>
                {
                    log.line(&format!("torch has no build `{build}` that goes with the rest"));
                }
                Err(error) => return Err(error),
            }
        };
        let mut lock = EnvironmentLock {
            format: 1,
            environment: spec.hash(),
            python: python.version.clone(),
            platform: spec.platform.clone(),
            accelerator: spec.accelerator,
            torch: None,
            equivalent: is_equivalent(&pins, &build, spec.accelerator),
            wheels: Vec::new(),
            built: Vec::new(),
        };
        for package in packages {
            if let Some((wheel, _)) = built.get(&package.name) {
                lock.built.push(wheel.clone());
                continue;
            }
            let pin = pins.get(&package.name).copied();
            let index = index_of(&package.name, pin, &build, indexes);
            let chosen = Chosen::of(&package, pin, &python.tags, self.build_sources, &index)?;
            let file = self.locked(&chosen, files).await?;
            let (name, version) = (chosen.token(&package.name)?, chosen.token(&chosen.version)?);
            if package.name == "torch" {
                lock.torch = Some(version.clone());
            }
            if chosen.is_source {
                let source = BuildSource::File(file);
                lock.built.push(BuiltWheel { name, version, source, wheel: None });
            } else {
                lock.wheels.push(LockedWheel { name, version, file });
            }
        }
        lock.wheels.sort_by(|a, b| a.name.cmp(&b.name));
        lock.built.sort_by(|a, b| a.name.cmp(&b.name));
        log.line(&format!("{} wheels, {} to build", lock.wheels.len(), lock.built.len()));
        Ok(lock)
    }

    async fn locked(&self, chosen: &Chosen, files: &dyn WheelSource) -> Result<LockedFile, PythonError> {
        let unreadable = |error: protocol::ParseTextError| PythonError::Unreadable(error.to_string());
        let urls: Vec<WebUrl> = vec![chosen.url.parse().map_err(unreadable)?];
        let size = match chosen.size {
            Some(size) => size,
            None => files.size(&urls).await?,
        };
        let file_name = chosen.file_name.parse().map_err(unreadable)?;
        Ok(LockedFile { file_name, sha256: chosen.sha256, size, blob: None, urls })
    }
}

fn read(asks: &[Ask], spec: &EnvironmentSpec, log: &PrepareLog) -> Vec<Requirement> {
    let mut requirements = Vec::new();
    for ask in asks {
        let asked = ask.read(spec);
        for (line, reason) in &asked.ignored {
            log.line(&format!("`{line}` in `{}` is not obeyed: {reason}", ask.from));
        }
        requirements.extend(asked.requirements);
    }
    requirements
}

/// The build of torch that the lockfile names, empty for the plain one.
pub(super) fn recorded_build<'a>(pins: &BTreeMap<String, &'a PackagePin>) -> &'a str {
    let torch = TORCH_FAMILY.iter().find_map(|name| pins.get(*name));
    torch.map_or("", |package| local(package))
}

fn local(package: &PackagePin) -> &str {
    match &package.pin {
        Pin::Version(version) => version.as_str().split_once('+').map_or("", |(_, local)| local),
        Pin::Url(_) | Pin::Git(_) => "",
    }
}

/// Whether a package of the torch family is of another build than was recorded. The plain build stands for
/// whatever its index has for a platform, so on another accelerator it is another one.
fn is_equivalent(pins: &BTreeMap<String, &PackagePin>, build: &str, accelerator: Accelerator) -> bool {
    let plain = build.is_empty() && accelerator == Accelerator::Rocm;
    let versions = pins.iter().filter(|(_, package)| matches!(package.pin, Pin::Version(_)));
    let mut family = versions.filter(|(name, _)| is_torch_family(name));
    family.any(|(_, package)| plain || local(package) != build)
}

/// The index that a package is asked of, for messages.
fn index_of(name: &str, pin: Option<&PackagePin>, build: &str, indexes: &super::Indexes) -> String {
    let torch = pin.filter(|_| is_torch_family(name)).and_then(|pin| indexes.of_pin(pin, build));
    let recorded = pin.and_then(|pin| pin.index.as_ref()).map(ToString::to_string);
    without_user(&torch.or(recorded).unwrap_or_else(|| indexes.packages.clone()))
}

/// The file that a package is installed from on this machine.
#[derive(Debug, PartialEq, Eq)]
struct Chosen {
    version: String,
    url: String,
    file_name: String,
    sha256: Sha256,
    size: Option<u64>,
    is_source: bool,
}

impl Chosen {
    fn of(
        package: &Package,
        pin: Option<&PackagePin>,
        tags: &Tags,
        build_sources: bool,
        index: &str,
    ) -> Result<Self, PythonError> {
        // Asked for by a package that is none of ours to change; what we ask for was built before.
        if let Some(repository) = &package.vcs {
            let url = repository.url.clone().unwrap_or_default();
            return Err(PythonError::NoCommit { name: package.name.clone(), url });
        }
        let rank = |file: &File| file.name().and_then(|name| tags.rank(&name));
        let all = package.wheels.iter().chain(&package.archive);
        let mut wheels: Vec<&File> = all.filter(|file| rank(file).is_some()).collect();
        wheels.sort_by_key(|file| rank(file));
        let archive = package.archive.iter().filter(|file| !is_wheel(file));
        let sources: Vec<&File> = package.sdist.iter().chain(archive).collect();
        let version = package.version.clone();
        let expected =
            pin.map(|pin| hashes_of(pin, version.as_deref().unwrap_or_default())).unwrap_or_default();
        let good =
            |file: &&&File| expected.is_empty() || sha256(file).is_some_and(|hash| expected.contains(&hash));
        let allowed = if build_sources { sources.as_slice() } else { &[] };
        let files = || wheels.iter().chain(allowed);
        let found = files().find(good);
        let shown = || version.clone().unwrap_or_default();
        let Some(file) = found else {
            let Some(file) = files().next() else {
                let (name, version) = (package.name.clone(), shown());
                return Err(match sources.is_empty() {
                    true => PythonError::NoFile { name, version },
                    false => PythonError::NoWheel { explanation: format!("`{name}` {version}") },
                });
            };
            let Some(found) = sha256(file) else {
                return Err(PythonError::NoHash { name: package.name.clone(), version: shown() });
            };
            return Err(PythonError::WrongHash(Box::new(WrongHash {
                name: package.name.clone(),
                version: shown(),
                file_name: file.name().unwrap_or_default(),
                expected: expected.to_vec(),
                found,
                index: index.to_owned(),
            })));
        };
        let no_hash = || PythonError::NoHash { name: package.name.clone(), version: shown() };
        let no_url = || PythonError::Unreadable(format!("`{}` has no URL", package.name));
        let file_name = file.name().ok_or_else(no_url)?;
        let of_name = || file_name.split('-').nth(1).unwrap_or("0").to_owned();
        Ok(Self {
            version: version.clone().unwrap_or_else(of_name),
            url: without_user(file.url.as_deref().and_then(|url| url.split('#').next()).ok_or_else(no_url)?),
            sha256: sha256(file).ok_or_else(no_hash)?,
            size: file.size,
            is_source: !is_wheel(file),
            file_name,
        })
    }

    fn token(&self, text: &str) -> Result<protocol::Token, PythonError> {
        text.parse().map_err(|error: protocol::ParseTextError| PythonError::Unreadable(error.to_string()))
    }
}

fn is_wheel(file: &File) -> bool {
    file.name().is_some_and(|name| name.ends_with(".whl"))
}

fn sha256(file: &File) -> Option<Sha256> {
    file.hashes.sha256.as_deref().and_then(|hash| hash.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::super::pylock;
    use super::super::tags::{Libc, linux};
    use super::*;

    const ONE: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    const TWO: &str = "2222222222222222222222222222222222222222222222222222222222222222";

    fn package(files: &str) -> Package {
        let text = format!("lock-version = '1.0'\n[[packages]]\nname = 'a'\nversion = '1'\n{files}");
        pylock::parse(&text).expect("it is read").remove(0)
    }

    fn choose(package: &Package, hashes: &[&str], build: bool) -> Result<Chosen, PythonError> {
        let tags = Tags::of(11, &linux("x86_64", Libc::Glibc(2, 36)));
        let pin = Pin::Version("1".parse().expect("a version"));
        let mut pin = PackagePin::new("a".parse().expect("a name"), pin);
        pin.hashes = hashes.iter().map(|hash| hash.parse().expect("a hash")).collect();
        Chosen::of(package, Some(&pin), &tags, build, "https://index.example/simple")
    }

    fn two_wheels() -> Package {
        package(&format!(
            "wheels = [{{ url = 'https://x.example/a-1-py3-none-any.whl', hashes = {{ sha256 = '{ONE}' }} }},
            {{ url = 'https://x.example/a-1-cp311-cp311-manylinux_2_28_x86_64.whl', hashes = {{ sha256 = '{TWO}' }} }},
            {{ url = 'https://x.example/a-1-cp312-cp312-win_amd64.whl', hashes = {{ sha256 = '{TWO}' }} }}]"
        ))
    }

    #[test]
    fn best_wheel_is_chosen_and_a_recorded_hash_decides() {
        let best = choose(&two_wheels(), &[], false).expect("a wheel");
        assert_eq!(best.file_name, "a-1-cp311-cp311-manylinux_2_28_x86_64.whl");
        let recorded = choose(&two_wheels(), &[ONE], false).expect("a wheel");
        assert_eq!(recorded.file_name, "a-1-py3-none-any.whl");
    }

    #[test]
    fn other_hash_is_refused_with_both_and_the_index() {
        let three = "3".repeat(64);
        let error = choose(&two_wheels(), &[&three], false).expect_err("another hash").to_string();
        for part in ["`a` 1", "manylinux_2_28", TWO, &three, "https://index.example/simple"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn source_is_taken_only_where_that_is_allowed() {
        let source = package(&format!(
            "sdist = {{ url = 'https://x.example/a-1.tar.gz', size = 3, hashes = {{ sha256 = '{ONE}' }} }}"
        ));
        assert!(choose(&source, &[], true).expect("a source").is_source);
        let refused = choose(&source, &[], false).expect_err("building is not allowed").to_string();
        assert!(refused.contains("`--allow-install-scripts`: `a` 1"), "{refused}");
        let elsewhere = package(&format!(
            "wheels = [{{ url = 'https://x.example/a-1-cp311-cp311-win_amd64.whl', hashes = {{ sha256 = '{ONE}' }} }}]"
        ));
        assert!(matches!(choose(&elsewhere, &[], true), Err(PythonError::NoFile { .. })));
        let unproven = package("wheels = [{ url = 'https://x.example/a-1-py3-none-any.whl' }]");
        assert!(matches!(choose(&unproven, &[], false), Err(PythonError::NoHash { .. })));
        let repository = package("vcs = { type = 'git', url = 'https://x.example/a.git' }");
        assert!(matches!(choose(&repository, &[], true), Err(PythonError::NoCommit { .. })));
    }
}
