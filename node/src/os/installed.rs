//! What is installed on this system: the libraries that its loader finds by name, the programs in `PATH`, and the
//! packages that brought them.
//!
//! Not here: what of it is needed.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the program is that lists what the loader knows, on systems that do not have it in `PATH`.
const SYSTEM_PROGRAMS: [&str; 2] = ["/sbin", "/usr/sbin"];

/// What this system has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Installed {
    libraries: BTreeSet<String>,
    programs: Vec<PathBuf>,
}

impl Installed {
    /// Looks; `None` where the loader does not tell what it knows, as without glibc. Blocks.
    pub(crate) fn look() -> Option<Self> {
        let folders = |name| env::var_os(name).iter().flat_map(env::split_paths).collect::<Vec<PathBuf>>();
        let programs = folders("PATH");
        let listing =
            find(programs.iter().map(PathBuf::as_path).chain(SYSTEM_PROGRAMS.map(Path::new)), "ldconfig")?;
        let mut libraries = libraries_of(&output(Command::new(listing).arg("-p"))?, env::consts::ARCH);
        for folder in folders("LD_LIBRARY_PATH") {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            libraries.extend(entries.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        Some(Self { libraries, programs })
    }

    /// Whether a program finds this library.
    pub(crate) fn has_library(&self, name: &str) -> bool {
        self.libraries.contains(name)
    }

    /// Where a program is that is called by its name alone.
    pub(crate) fn program(&self, name: &str) -> Option<PathBuf> {
        find(self.programs.iter().map(PathBuf::as_path), name)
    }
}

/// Which package of this system each of these files is from, by the file's name; those that none brought are left out.
/// Blocks.
pub(crate) fn packages_of(names: &BTreeSet<&str>) -> BTreeMap<String, String> {
    if names.is_empty() {
        return BTreeMap::new();
    }
    let mut command = Command::new("dpkg-query");
    command.arg("--search").args(names.iter().map(|name| format!("*/{name}")));
    packages_in(&output(&mut command).unwrap_or_default(), names)
}

fn find<'a>(mut folders: impl Iterator<Item = &'a Path>, name: &str) -> Option<PathBuf> {
    let is_program = |path: &Path| {
        path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    folders.find_map(|folder| Some(folder.join(name)).filter(|path| is_program(path)))
}

/// What a program prints, also where some of its questions had no answer.
fn output(command: &mut Command) -> Option<String> {
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The names in what `ldconfig -p` prints, of this architecture's own format:
/// `libz.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libz.so.1`.
fn libraries_of(printed: &str, architecture: &str) -> BTreeSet<String> {
    let is_own = |format: &str| match architecture {
        "x86_64" => format.contains("x86-64"),
        "aarch64" => format.contains("AArch64"),
        _ => true,
    };
    let library = |line: &str| {
        let (name, rest) = line.trim_start().split_once(" (")?;
        is_own(rest.split(')').next()?).then(|| name.to_owned())
    };
    printed.lines().filter(|line| line.contains(" => ")).filter_map(library).collect()
}

/// The packages in what `dpkg-query --search` prints: `zlib1g:amd64: /lib/x86_64-linux-gnu/libz.so.1`.
fn packages_in(printed: &str, names: &BTreeSet<&str>) -> BTreeMap<String, String> {
    let mut packages = BTreeMap::new();
    for line in printed.lines() {
        let Some((owners, path)) = line.split_once(": ") else { continue };
        // Where a package moved another one's file away, the line tells of that and is no answer.
        let Some(owner) = owners.split(", ").next().filter(|owner| !owner.contains(' ')) else { continue };
        let package = owner.split(':').next().unwrap_or(owner);
        let name = path.rsplit('/').next().unwrap_or_default();
        // What the loader and `PATH` look into, and not what another program keeps under the same name.
        let is_in_place = ["/lib", "/bin", "/sbin"].iter().any(|place| path.contains(place));
        if names.contains(name) && is_in_place {
            packages.entry(name.to_owned()).or_insert_with(|| package.to_owned());
        }
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_the_own_architecture_are_read_from_what_the_loader_lists() {
        let printed = "3 libs found in cache `/etc/ld.so.cache'
\tlibz.so.1 (libc6,x86-64) => /lib/x86_64-linux-gnu/libz.so.1
\tlibc.so.6 (libc6,x86-64, OS ABI: Linux 3.2.0) => /lib/x86_64-linux-gnu/libc.so.6
\tlibGL.so.1 (libc6) => /lib/i386-linux-gnu/libGL.so.1
Cache generated by: ldconfig (Debian GLIBC 2.41-12) stable release version 2.41";
        let own = libraries_of(printed, "x86_64");
        assert_eq!(own.iter().map(String::as_str).collect::<Vec<_>>(), ["libc.so.6", "libz.so.1"]);
        assert!(libraries_of(printed, "aarch64").is_empty());
    }

    #[test]
    fn packages_are_those_that_have_the_file_where_it_is_looked_for() {
        let printed = "ffmpeg: /usr/share/bash-completion/completions/ffmpeg
diversion by glx-diversions from: /usr/lib/x86_64-linux-gnu/libGL.so.1
libgl1:amd64, libgl1:i386: /usr/lib/x86_64-linux-gnu/libGL.so.1
ffmpeg: /usr/bin/ffmpeg";
        let names = ["ffmpeg", "libGL.so.1", "libx.so.1"].into();
        let expected = [("ffmpeg", "ffmpeg"), ("libGL.so.1", "libgl1")];
        let expected = expected.map(|(name, package)| (name.to_owned(), package.to_owned()));
        assert_eq!(packages_in(printed, &names), expected.into());
    }

    #[test]
    fn this_system_has_what_this_program_itself_was_started_with() {
        let Some(installed) = Installed::look() else { return };
        assert!(installed.has_library("libc.so.6") && !installed.has_library("libnowhere.so.1"));
        assert!(installed.program("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(installed.program("no-such-program"), None);
    }
}
