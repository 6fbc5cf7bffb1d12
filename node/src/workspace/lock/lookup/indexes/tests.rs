//! Indexes of the test's own, whose pages have the shape of the real ones.

use std::collections::BTreeMap;

use super::super::tests::Web;
use super::*;

const ONE: Sha256 = Sha256([0x11; 32]);
const TWO: Sha256 = Sha256([0x22; 32]);
const THREE: Sha256 = Sha256([0x33; 32]);

/// An index of these packages, each with its files and their hashes.
async fn index(packages: &[(&str, &[(&str, Sha256)])]) -> (Web, IndexUrl) {
    let page = |(package, files): &(&str, &[(&str, Sha256)])| {
        let links = files
            .iter()
            .map(|(name, hash)| format!("<a href=\"../../files/{name}#sha256={hash}\">{name}</a>"));
        (format!("/simple/{package}/"), (200, String::new(), links.collect::<String>()))
    };
    let web = Web::start(|_| packages.iter().map(page).collect::<BTreeMap<_, _>>()).await;
    let url = format!("{}/simple", web.base).parse().expect("a URL");
    (web, url)
}

fn lockfile(packages: &[(&str, &str)]) -> Lockfile {
    let pin = |(name, version): &(&str, &str)| {
        PackagePin::new(name.parse().expect("a name"), Pin::Version(version.parse().expect("a version")))
    };
    Lockfile { packages: packages.iter().map(pin).collect(), ..Lockfile::default() }
}

#[tokio::test]
async fn hashes_of_every_platform_are_recorded_and_what_no_index_has_is_told() {
    let files: [(&str, Sha256); 3] = [
        ("a_b-1.0-cp311-cp311-win_amd64.whl", TWO),
        ("a_b-1.0.tar.gz", ONE),
        ("a_b-2-py3-none-any.whl", THREE),
    ];
    let (web, main) = index(&[("a-b", &files)]).await;
    let indexes = PackageIndexes { main: main.clone(), ..PackageIndexes::default() };
    let mut lockfile = lockfile(&[("A.b", "1.0"), ("a-b2", "1"), ("c", "1")]);
    lockfile.packages[2].pin = Pin::Url("https://example.org/c.whl".parse().expect("an address"));
    let mut notes = Vec::new();
    let none = BTreeMap::new();
    let unresolved = look_up_packages(&mut lockfile, &indexes, &none, &mut notes).await.expect("a client");
    assert_eq!(lockfile.packages[0].hashes, [ONE, TWO]);
    assert_eq!(unresolved.len(), 1);
    assert_eq!(unresolved[0].reason, format!("this version is not in `{main}`"));
    assert_eq!(web.asked(), ["/simple/a-b/", "/simple/a-b2/"], "an archive by its URL is in no index");
    assert_eq!(notes.len(), 1, "its address is none that a lockfile has: {notes:?}");
}

#[tokio::test]
async fn further_index_counts_unless_the_main_one_has_the_same_files() {
    let (_further, extra) = index(&[
        ("own", &[("own-1-py3-none-any.whl", ONE)]),
        ("shared", &[("shared-1-cp311-cp311-linux_x86_64.whl", ONE)]),
    ])
    .await;
    let (_everything, main) = index(&[
        ("own", &[("own-1-py3-none-any.whl", TWO)]),
        ("shared", &[("shared-1-cp311-cp311-linux_x86_64.whl", ONE), ("shared-1.tar.gz", TWO)]),
        ("plain", &[("plain-1.tar.gz", THREE)]),
    ])
    .await;
    let indexes = PackageIndexes { main, extra: vec![extra.clone()], ..PackageIndexes::default() };
    let mut lockfile = lockfile(&[("own", "1"), ("shared", "1"), ("plain", "1")]);
    let mut notes = Vec::new();
    let installed = BTreeMap::from([("plain".parse().expect("a name"), ONE)]);
    let unresolved =
        look_up_packages(&mut lockfile, &indexes, &installed, &mut notes).await.expect("a client");
    let hashes: Vec<_> = lockfile.packages.iter().map(|package| package.hashes.clone()).collect();
    assert_eq!(hashes, [vec![ONE], vec![ONE, TWO], Vec::new()]);
    assert_eq!(unresolved.len(), 1, "another file was installed: {unresolved:?}");
    assert!(
        unresolved[0].reason.contains(&format!("with SHA-256 `{ONE}`, is not in `{extra}` or")),
        "{unresolved:?}"
    );
}

#[tokio::test]
async fn index_that_cannot_be_reached_is_asked_once_and_said_without_its_password() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("it is bound");
    drop(listener);
    let main = format!("http://me:secret@{address}/simple").parse().expect("a URL");
    let indexes = PackageIndexes { main, ..PackageIndexes::default() };
    let mut lockfile = lockfile(&[("a", "1"), ("b", "1")]);
    let none = BTreeMap::new();
    let unresolved =
        look_up_packages(&mut lockfile, &indexes, &none, &mut Vec::new()).await.expect("a client");
    assert_eq!(unresolved.len(), 2);
    for Unresolved { reason, .. } in &unresolved {
        assert!(reason.starts_with(&format!("`http://{address}/simple` does not tell: ")), "{reason}");
        assert!(!reason.contains("secret"), "{reason}");
    }
}

#[test]
fn private_index_of_a_public_address_can_be_recorded_without_who_asked() {
    let index: IndexUrl = "https://me:secret@packages.example.org/simple/".parse().expect("a URL");
    assert_eq!(index.to_string(), "https://packages.example.org/simple");
    assert_eq!(format!("{index:?}"), index.to_string());
    assert!(index.to_string().parse::<HttpsUrl>().is_ok());
    for wrong in ["file:///simple", "pypi.org/simple", "https://a.example/simple?token=1"] {
        assert!(wrong.parse::<IndexUrl>().is_err(), "{wrong}");
    }
}
