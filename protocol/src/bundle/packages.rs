//! Python packages as comfy-pack writes them: lines of `pip freeze`, whole or split into a map.
//!
//! Not here: the rest of the snapshot.

use serde_json::{Map, Value};

use super::Repair;
use super::snapshot::{SnapshotError, checked};
use crate::lockfile::{GitUrl, HttpsUrl, PackagePin, Pin, Token};
use crate::workspace::{follows_torch, normalized};

/// Where a package stands, for messages.
const PIPS: &str = "snapshot.json, `pips`";

/// The packages of the newer format: `{"name==version": ""}` or `{"name": "url"}`.
pub(super) fn from_pips(
    pips: &Map<String, Value>,
    repairs: &mut Vec<Repair>,
) -> Result<Vec<PackagePin>, SnapshotError> {
    let lines = pips.iter().map(|(key, value)| match value.as_str().unwrap_or_default() {
        "" => key.clone(),
        url => format!("{key} @ {url}"),
    });
    from_lines(PIPS, lines, repairs)
}

/// The packages of the older format: `requirements.txt`.
pub(super) fn from_requirements(
    text: &str,
    repairs: &mut Vec<Repair>,
) -> Result<Vec<PackagePin>, SnapshotError> {
    from_lines("requirements.txt", text.lines().map(str::to_owned), repairs)
}

fn from_lines(
    place: &str,
    lines: impl Iterator<Item = String>,
    repairs: &mut Vec<Repair>,
) -> Result<Vec<PackagePin>, SnapshotError> {
    let mut packages: Vec<PackagePin> = Vec::new();
    let mut unpinned = Vec::new();
    let mut repair = |text: String| repairs.push(Repair { place: place.to_owned(), text });
    for line in lines {
        match Line::read(place, line.trim())? {
            Line::Nothing => {}
            Line::Dropped(reason) => repair(format!("`{}` is left out: {reason}", shown(&line))),
            Line::Unpinned(name) => unpinned.push(name),
            Line::Pinned(package) => packages.push(package),
        }
    }
    // Where one name stands twice (broken environments have that), the later was installed over the earlier.
    packages.reverse();
    packages.sort_by_key(|package| normalized(package.name.as_str()));
    packages.dedup_by(|second, first| {
        let same = normalized(second.name.as_str()) == normalized(first.name.as_str());
        if same && second.pin != first.pin {
            repair(format!("package `{}` stands twice; the last is taken", first.name));
        }
        same
    });
    leave_to_torch(&mut packages, &mut repair);
    for name in unpinned {
        let known = packages
            .binary_search_by_key(&normalized(name.as_str()), |package| normalized(package.name.as_str()));
        if known.is_err() {
            repair(format!("package `{name}` is left out: it has no version"));
        }
    }
    Ok(packages)
}

/// Leaves out what torch asks for by itself.
fn leave_to_torch(packages: &mut Vec<PackagePin>, repair: &mut impl FnMut(String)) {
    let is_torch = |package: &PackagePin| normalized(package.name.as_str()) == "torch";
    let follows = |package: &PackagePin| follows_torch(&normalized(package.name.as_str()));
    if !packages.iter().any(is_torch) {
        return;
    }
    let following: Vec<String> = packages
        .iter()
        .filter(|package| follows(package))
        .map(|package| format!("`{}`", package.name))
        .collect();
    packages.retain(|package| !follows(package));
    if !following.is_empty() {
        let names = following.join(", ");
        repair(format!("left to the build of torch that a machine gets, which asks for its own: {names}"));
    }
}

enum Line {
    Nothing,
    Dropped(&'static str),
    Unpinned(Token),
    Pinned(PackagePin),
}

impl Line {
    fn read(place: &str, line: &str) -> Result<Self, SnapshotError> {
        if line.is_empty() || line.starts_with('#') {
            return Ok(Self::Nothing);
        }
        if let Some(address) = line.strip_prefix("-e ") {
            let name = address.split_once("#egg=").map(|(_, name)| name);
            let Some(name) = name.map(|name| name.split('&').next().unwrap_or(name)) else {
                return Ok(Self::Dropped("an editable install without a name"));
            };
            return Self::from_address(place, name, address);
        }
        if line.starts_with('-') {
            return Ok(Self::Dropped("options of pip are not taken from a bundle"));
        }
        if let Some((name, address)) = line.split_once(" @ ") {
            return Self::from_address(place, name, address);
        }
        let requirement = line.split(';').next().unwrap_or(line).trim();
        match requirement.split_once("==") {
            Some((name, version)) => {
                let (name, version) = (checked(place, name.trim())?, checked(place, version.trim())?);
                Ok(Self::Pinned(PackagePin::new(name, Pin::Version(version))))
            }
            None => Ok(requirement
                .parse()
                .map_or(Self::Dropped("it is not pinned to one version"), Self::Unpinned)),
        }
    }

    fn from_address(place: &str, name: &str, address: &str) -> Result<Self, SnapshotError> {
        let name = checked(place, name.trim())?;
        let address = address.trim();
        if address.starts_with("file:") {
            return Ok(Self::Dropped("it lies on its author's disk"));
        }
        let bare = address.strip_prefix("git+");
        let is_ssh = ["ssh:", "git@"].iter().any(|scheme| bare.unwrap_or(address).starts_with(scheme));
        let pin = match bare.or(is_ssh.then_some(address)) {
            Some(repository) => {
                // That of a forge is read as its https one.
                let url = repository.parse::<GitUrl>().ok().filter(GitUrl::is_public);
                let url = match url {
                    None if is_ssh => {
                        let reason =
                            "its repository needs a key that nodes have not: record its https address";
                        return Ok(Self::Dropped(reason));
                    }
                    None => checked::<HttpsUrl>(place, repository)?.into(),
                    Some(url) => url,
                };
                let path = url.as_str().split('#').next().unwrap_or_default();
                if !path.split_once("://").is_some_and(|(_, path)| path.contains('@')) {
                    return Ok(Self::Dropped("its repository is named without a commit"));
                }
                Pin::Git(url)
            }
            None => Pin::Url(checked(place, address)?),
        };
        Ok(Self::Pinned(PackagePin::new(name, pin)))
    }
}

/// Names of Python packages differ neither by case nor by which of `-_.` they use.
fn shown(line: &str) -> String {
    line.chars().filter(|character| !character.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<String>, Vec<String>) {
        let mut repairs = Vec::new();
        let packages = from_requirements(text, &mut repairs).unwrap();
        let pin = |pin: &Pin| match pin {
            Pin::Version(version) => version.to_string(),
            Pin::Url(url) => url.to_string(),
            Pin::Git(url) => url.to_string(),
        };
        let packages = packages.iter().map(|package| format!("{} {}", package.name, pin(&package.pin)));
        (packages.collect(), repairs.into_iter().map(|repair| repair.text).collect())
    }

    #[test]
    fn every_form_of_a_requirement_is_read_or_left_out_with_a_reason() {
        let (packages, repairs) = read(
            "# comment\n\nclip @ git+https://github.com/openai/CLIP.git@dcba3cb\nx==1.0 ; python_version>'3'\n\
             wheel @ https://example.org/w.whl\n-e git+https://github.com/a/b@abc#egg=b&subdirectory=c\n\
             local @ file:///opt/x\nkey @ git+ssh://git@forge.example/a/b@abc\nfloating @ git+https://github.com/a/b\n\
             --index-url https://example.org\nloose>=2\nbare\nssh @ git+ssh://git@github.com/a/s.git@abc\n\
             -e git+git@gitlab.com:a/own.git@abc#egg=own\n-e git+git@forge.example:a/b.git@abc#egg=c\n",
        );
        let expected = [
            "b https://github.com/a/b@abc#egg=b&subdirectory=c",
            "clip https://github.com/openai/CLIP.git@dcba3cb",
            "own https://gitlab.com/a/own.git@abc#egg=own",
            "ssh https://github.com/a/s.git@abc",
            "wheel https://example.org/w.whl",
            "x 1.0",
        ];
        assert_eq!(packages, expected);
        let reasons = [
            "author's disk",
            "a key that nodes",
            "without a commit",
            "options of pip",
            "not pinned",
            "record its https address",
            "`bare` is left out",
        ];
        assert_eq!(repairs.len(), reasons.len(), "{repairs:?}");
        for (repair, reason) in repairs.iter().zip(reasons) {
            assert!(repair.contains(reason), "{repair}");
        }
    }

    #[test]
    fn what_follows_torch_is_left_to_it() {
        let (packages, repairs) =
            read("torch==2.4.0\nnvidia-cublas-cu12==12.1.3.1\nnvidia_ml_py==12\nTriton==3.0.0\npillow==11\n");
        assert_eq!(packages, ["nvidia_ml_py 12", "pillow 11", "torch 2.4.0"]);
        assert_eq!(repairs.len(), 1, "{repairs:?}");
        assert!(repairs[0].ends_with("its own: `nvidia-cublas-cu12`, `Triton`"), "{repairs:?}");
        assert_eq!(read("nvidia-cublas-cu12==12.1.3.1\n").0.len(), 1, "nothing else asks for it");
    }

    #[test]
    fn of_two_versions_the_later_is_taken_and_said() {
        let (packages, repairs) = read("A-b==1\na_b==2\nc==1\nc==1\nfastapi==1\nfastapi\n");
        assert_eq!(packages, ["a_b 2", "c 1", "fastapi 1"]);
        assert_eq!(repairs, ["package `a_b` stands twice; the last is taken"]);
    }

    #[test]
    fn options_and_strange_schemes_in_disguise_are_refused() {
        for line in [
            "x @ ext::sh -c id",
            "x @ http://example.org/x",
            "x==1 --config",
            "x y==1",
            "x @ git+file:///a@b",
        ] {
            let error = from_requirements(line, &mut Vec::new()).unwrap_err().to_string();
            assert!(error.starts_with("requirements.txt"), "{line}: {error}");
        }
    }
}
