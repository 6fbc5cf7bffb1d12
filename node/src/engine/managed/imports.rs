//! Custom nodes that did not import: what ComfyUI says of each, and what can be done about it.
//!
//! Pure. Not here: what is missing for it in a workspace.

use super::download::blocked;

/// The most lines of one that are looked at for what it wanted.
const LINES: usize = 100;

/// A custom node that did not import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FailedImport {
    /// What it is called in `custom_nodes`.
    pub(super) node: String,
    /// Its traceback.
    traceback: String,
    /// The last lines until then.
    said: Vec<String>,
}

/// Each `Cannot import … module for custom nodes: …` with the traceback that stands before it.
pub(super) fn failed_imports(lines: &[String]) -> Vec<FailedImport> {
    const TRACEBACK: &str = "Traceback (most recent call last):";
    let mut failed = Vec::new();
    let (mut begun, mut traceback): (usize, Option<usize>) = (0, None);
    for (number, line) in lines.iter().enumerate() {
        if line.starts_with(TRACEBACK) {
            // The first of a chain (`During handling of the above exception …`) tells the cause.
            traceback = traceback.or(Some(number));
        } else if let Some(rest) = line.strip_prefix("Cannot import ") {
            let path = rest.split(" module for custom nodes").next().unwrap_or_default();
            let node = path.rsplit('/').next().unwrap_or_default().to_owned();
            let from = traceback.take().unwrap_or(number);
            let words = lines[from..=number].iter().map(String::as_str).filter(|line| !line.is_empty());
            let traceback = words.collect::<Vec<_>>().join("\n");
            let said = lines[begun.max(from.saturating_sub(LINES))..from].to_vec();
            failed.push(FailedImport { node, traceback, said });
            begun = number + 1;
        }
    }
    failed
}

impl FailedImport {
    /// What is to be told of it, of one whose process had a network or not, and whose `install.py` was left out or not.
    pub(super) fn told(&self, has_network: bool, script_was_skipped: bool) -> String {
        let Self { node, traceback, said } = self;
        let wanted = blocked(&[traceback], said, has_network);
        let mut told = match wanted {
            Some(wanted) => format!(
                "undeclared_file: custom node `{node}` wants to {wanted} as it is imported, which the lockfile does not \
                 name: {}\n{traceback}",
                wanted.hint()
            ),
            None => traceback.clone(),
        };
        if let Some(library) = lacking_library(traceback) {
            told.push_str(&format!(
                "\n(`{library}` is a library of the system that no package brings: install it on this machine)"
            ));
        }
        if script_was_skipped {
            told.push_str(&format!(
                "\n(`install.py` of custom node `{node}` was not run, which may be why: the node's owner can start it with \
                 `--allow-install-scripts`)"
            ));
        }
        told
    }
}

/// The library of the system that an import lacked, by the loader's words.
fn lacking_library(traceback: &str) -> Option<&str> {
    let (words, _) = traceback.split_once(": cannot open shared object file")?;
    words.rsplit([' ', '\n']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(lines: &str) -> Vec<FailedImport> {
        failed_imports(&lines.lines().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn failed_imports_are_told_with_their_tracebacks() {
        let lines = "Starting server
Traceback (most recent call last):
  File \"nodes.py\", line 2131, in load_custom_node
ModuleNotFoundError: No module named 'nowhere'

Cannot import /x/custom_nodes/bad module for custom nodes: No module named 'nowhere'

Import times for custom nodes:
   0.0 seconds (IMPORT FAILED): /x/custom_nodes/bad";
        let failed = failed(lines);
        assert_eq!((failed.len(), failed[0].node.as_str()), (1, "bad"));
        let told = failed[0].told(false, false);
        assert!(told.starts_with("Traceback") && told.ends_with("'nowhere'"), "{told}");
        assert!(told.contains("nodes.py"), "{told}");
        let hinted = failed[0].told(false, true);
        assert!(
            hinted.starts_with(&told) && hinted.contains("`install.py` of custom node `bad`"),
            "{hinted}"
        );
        assert!(hinted.contains("`--allow-install-scripts`"), "{hinted}");
        assert!(failed_imports(&["Starting server".to_owned()]).is_empty());
    }

    #[test]
    fn library_of_the_system_that_an_import_lacked_is_named() {
        let lines = "Traceback (most recent call last):
ImportError: libGL.so.1: cannot open shared object file: No such file or directory
Cannot import /x/custom_nodes/bad module for custom nodes: libGL.so.1: cannot open shared object file: No such file";
        let told = failed(lines)[0].told(false, false);
        assert!(told.contains("(`libGL.so.1` is a library of the system that no package brings"), "{told}");
    }

    #[test]
    fn each_import_that_wanted_the_network_is_told_by_what_it_wanted() {
        let lines = "ERROR: No matching distribution found for duckduckgo-search
Traceback (most recent call last):
subprocess.CalledProcessError: Command '['python', '-m', 'pip', 'install', 'x']' returned non-zero exit status 1.
Cannot import /x/custom_nodes/one module for custom nodes: Command '['python', … returned non-zero exit status 1.
Downloading https://dl.example.org/b.pth
Traceback (most recent call last):
urllib.error.URLError: <urlopen error [Errno -3] Temporary failure in name resolution>
Cannot import /x/custom_nodes/two.py module for custom nodes: <urlopen error …>
Traceback (most recent call last):
ModuleNotFoundError: No module named 'three'
Cannot import /x/custom_nodes/three module for custom nodes: No module named 'three'";
        let failed = failed(lines);
        let first = |number: usize, has_network: bool| {
            let told = failed[number].told(has_network, false);
            told.lines().next().unwrap_or_default().to_owned()
        };
        let one = first(0, false);
        assert!(
            one.starts_with(
                "undeclared_file: custom node `one` wants to install package `duckduckgo-search`"
            ),
            "{one}"
        );
        let two = first(1, false);
        assert!(
            two.contains("`two.py` wants to download `https://dl.example.org/b.pth`")
                && two.contains("--trace"),
            "{two}"
        );
        assert_eq!(first(0, true), one, "no network brings a package");
        assert!(first(1, true).starts_with("Traceback"), "with a network it is what it says");
        assert!(first(2, false).starts_with("Traceback"), "that of another is not its own");
    }
}
