//! Upstreams that mean no good, or are broken: silent, endless, and such that lead elsewhere.

use std::net::TcpListener;
use std::time::Duration;

use super::served::answering;
use super::*;

/// A server that says this much to whoever asks, and then nothing.
fn silent(says: &'static [u8]) -> GitPin {
    let mut held = Vec::new();
    answering(move |mut stream| {
        let _ = stream.write_all(says);
        held.push(stream);
    })
}

/// A server that takes connections, and never a word of TLS.
fn silent_over_tls() -> GitPin {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("https://{}/upstream", listener.local_addr().expect("bound"));
    std::thread::spawn(move || listener.incoming().flatten().collect::<Vec<_>>());
    GitPin::new(url.parse().expect("an address"), "1".repeat(40).parse().expect("a commit"))
}

#[test]
fn server_that_says_nothing_is_given_up_at_any_point() {
    const HALF: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n\
        Content-Length: 1000\r\n\r\n001e# service=git-upload-pack\n";
    for pin in [silent(b""), silent(HALF), silent_over_tls()] {
        let mut stores = Stores::new();
        let (connect, silence) = (Duration::from_secs(2), Duration::from_secs(1));
        stores.store.patience = Patience { connect, silence, ..Patience::default() };
        let error = stores.fetch(&pin).expect_err("it is silent");
        assert!(matches!(error, GitError::Silent { .. }), "{error:?}");
        let said = error.to_string();
        let expected = [pin.url.as_str(), pin.commit.as_str(), "and said nothing for", "node of the farm"];
        assert!(expected.iter().all(|word| said.contains(word)), "{said}");
    }
}

#[test]
fn address_that_was_judged_is_asked_whatever_the_settings_of_git_put_in_its_place() {
    let upstream = Upstream::new();
    let made = upstream.commit(&[("main.py", 0o100644, "x\n")]);
    let (right, other) = (Served::start(&upstream, true), Served::start(&upstream, true));
    let pin = right.pin(&made);
    let beginning = pin.url.as_str().trim_end_matches("upstream");
    let elsewhere = other.url.trim_end_matches("upstream");
    for (place, replaced) in [(elsewhere, beginning), (elsewhere, "http://"), (&other.url, pin.url.as_str())]
    {
        let stores = Stores::new();
        let store = stores.store.repository(&pin.url, Came::Fetched).expect("made");
        let mut config = store.config().expect("a config");
        config.set_str(&format!("url.{place}.insteadOf"), replaced).expect("set");
        let fetched = stores.fetch(&pin);
        match fetched {
            Ok(()) => assert_eq!(stores.checkout(&pin).expect("laid out")["main.py"], "x\n"),
            // The very address; there is no longer beginning.
            Err(error) => {
                let error = protocol::error_chain(&error);
                assert!(replaced == pin.url.as_str() && error.contains("insteadOf"), "{error}");
            }
        }
    }
    assert_eq!(other.requests.load(Ordering::Relaxed), 0, "nobody else is asked");
}

/// libgit2 finds a user's settings once in a process, so each fetch is in one of its own: this test again.
#[test]
fn settings_of_the_user_put_no_other_address_in_place_of_the_judged_one() {
    const NAME: &str = "settings_of_the_user_put_no_other_address_in_place_of_the_judged_one";
    const PIN: &str = "FARM_TEST_PIN";
    if let Ok(pin) = std::env::var(PIN) {
        let settings = git2::Config::open_default().expect("the user's settings");
        let mut found = settings.entries(Some("url\\..*\\.insteadof")).expect("read");
        assert!(found.next().is_some(), "the user's settings are read");
        match Stores::new().fetch(&serde_json::from_str(&pin).expect("a pin")) {
            Ok(()) => println!("fetched"),
            Err(error) => println!("{}", protocol::error_chain(&error)),
        }
        return;
    }
    let upstream = Upstream::new();
    let made = upstream.commit(&[("main.py", 0o100644, "x\n")]);
    let (right, other) = (Served::start(&upstream, true), Served::start(&upstream, true));
    let (pin, elsewhere) = (right.pin(&made), other.url.trim_end_matches("upstream"));
    let beginning = pin.url.as_str().trim_end_matches("upstream");
    let test = format!("{}::{NAME}", module_path!().split_once("::").expect("in a crate").1);
    for (place, replaced) in [(elsewhere, beginning), (elsewhere, "http://"), (&other.url, pin.url.as_str())]
    {
        let home = tempfile::tempdir().expect("a temporary folder");
        let settings = format!("[url \"{place}\"]\n\tinsteadOf = {replaced}\n");
        fs::write(home.path().join(".gitconfig"), settings).expect("written");
        let mut again = Command::new(std::env::current_exe().expect("this test"));
        again.args(["--exact", &test, "--nocapture"]).env_remove("XDG_CONFIG_HOME");
        again.env("HOME", home.path()).env(PIN, serde_json::to_string(&pin).expect("JSON"));
        let output = again.output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stdout);
        let is_exact = replaced == pin.url.as_str();
        assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.contains("fetched") || is_exact && said.contains("insteadOf"), "{said}");
    }
    assert_eq!(other.requests.load(Ordering::Relaxed), 0, "nobody else is asked");
}

#[test]
fn submodule_of_a_public_repository_leads_to_no_private_one() {
    let (inner, outer, stores) = (Upstream::new(), Upstream::new(), Stores::new());
    let pinned = inner.commit(&[("lib.py", 0o100644, "inner\n")]);
    let modules = format!("[submodule \"lib\"]\n\tpath = lib\n\turl = {}\n", inner.url());
    let files = [(".gitmodules", 0o100644, modules.as_str()), ("lib", 0o160000, pinned.commit.as_str())];
    let private = outer.commit(&files);
    let public = GitPin { url: "https://example.org/outer".parse().expect("an address"), ..private.clone() };
    // As if it had been fetched from there.
    let part = Part { path: String::new(), url: public.url.clone(), commit: oid(&public.commit) };
    let store = stores.store.repository(&public.url, Came::Fetched).expect("made");
    pack::copy_commit(&outer.repository, &store, part.commit).expect("copied");
    assert!(stores.store.mark_whole(&store, &part).expect("read"));
    let check = |pin: &GitPin, private_origins: bool, expected: Option<&str>| {
        let policy = Policy { private_origins, ..Policy::default() };
        match (stores.fetch_by(pin, &policy), expected) {
            (Ok(()), None) => {}
            (Err(error @ GitError::Refused { .. }), Some(expected)) => {
                let error = error.to_string();
                assert!(error.contains(expected) && error.contains(&inner.url()), "{error}");
            }
            (fetched, _) => panic!("{fetched:?}"),
        }
    };
    check(&public, false, Some("--allow-private-origins"));
    check(&public, true, Some("a submodule of a public one"));
    check(&private, true, None);
}

#[test]
fn public_name_that_leads_to_a_private_address_is_not_asked() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.set_nonblocking(true).expect("set");
    let port = listener.local_addr().expect("bound").port();
    let url = format!("https://git.example.org:{port}/upstream");
    let pin = GitPin::new(url.parse().expect("an address"), "1".repeat(40).parse().expect("a commit"));
    let mut stores = Stores::new();
    stores.store.lookup = |_| Box::pin(async { Ok(vec!["127.0.0.1:0".parse().expect("an address")]) });
    let error = stores.fetch_by(&pin, &Policy::default()).expect_err("it is private");
    assert!(matches!(error, GitError::Private { .. }), "{error:?}");
    let said = protocol::error_chain(&error);
    let expected = [&url, "`git.example.org` leads to 127.0.0.1", "--allow-private-origins"];
    assert!(expected.iter().all(|word| said.contains(word)), "{said}");
    let asked = listener.accept().expect_err("nobody connects");
    assert_eq!(asked.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn public_name_may_lead_to_a_private_address_by_the_owners_word_alone() {
    let check = |pin: &str, url: &str, policy: &Policy, expected: bool| {
        let [upstream, url] = [pin, url].map(|url| url.parse().expect("an address"));
        assert_eq!(fetch::may_be_private(policy, &upstream, &url), expected, "{upstream} {url}");
    };
    let (office, other) = ("https://git.example.org/a", "https://other.example.org/b");
    let brave = Policy { private_origins: true, ..Policy::default() };
    check(office, office, &Policy::default(), false);
    check(office, office, &brave, true);
    // A submodule.
    check(office, "https://git.example.org/lib", &brave, true);
    check(office, other, &brave, false);
    check("http://nas.local/a", other, &brave, true);
    let hosts: BTreeSet<String> = ["other.example.org".to_owned()].into();
    check(office, other, &Policy { hosts: hosts.clone(), ..brave }, true);
    check(office, other, &Policy { hosts, ..Policy::default() }, false);
}

#[test]
fn submodule_without_an_address_that_is_followed_is_a_fault_of_the_commit() {
    let inner = Upstream::new().commit(&[("lib.py", 0o100644, "inner\n")]);
    let check = |modules: &str, expected: &[&str]| {
        let (outer, stores) = (Upstream::new(), Stores::new());
        let files = [(".gitmodules", 0o100644, modules), ("lib", 0o160000, inner.commit.as_str())];
        let pin = outer.commit(&files);
        let error = stores.fetch(&pin).expect_err("nobody knows where it is");
        assert!(error.is_refusal(), "{error:?}");
        let said = protocol::error_chain(&error);
        let common = ["submodule `lib`", pin.url.as_str(), pin.commit.as_str(), "record a commit, or a fork"];
        assert!(common.iter().chain(expected).all(|word| said.contains(word)), "{said}");
    };
    let listed = |url: &str| format!("[submodule \"lib\"]\n\tpath = lib\n\turl = {url}\n");
    check(&listed("ssh://git@forge.example/a/b"), &["`ssh://git@forge.example/a/b`", "an https address"]);
    check(&listed("/srv/lib"), &["`/srv/lib`"]);
    check("[submodule \"other\"]\n\tpath = other\n\turl = https://example.org/a\n", &["no address"]);
}

#[test]
fn list_of_branches_without_an_end_is_not_kept() {
    let pin = answering(|mut stream| {
        let _ = stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/x-git-upload-pack-advertisement\r\n\r\n\
            001e# service=git-upload-pack\n0000",
        );
        let line = format!("{} refs/heads/{}\n", "1".repeat(40), "x".repeat(60_000));
        let line = format!("{:04x}{line}", line.len() + 4);
        while stream.write_all(line.as_bytes()).is_ok() {}
    });
    let error = Stores::new().fetch(&pin).expect_err("it has no end");
    assert!(matches!(error, GitError::TooLarge { .. }), "{error:?}");
}

#[test]
fn moved_and_missing_repositories_are_told_with_what_to_do() {
    const MOVED: &str = "301 Moved Permanently\r\n\
        Location: https://new.example.org/x/info/refs?service=git-upload-pack";
    let check = |answer: &'static str, expected: &[&str]| {
        let pin = answering(move |mut stream| {
            let answer = format!("HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n");
            let _ = stream.write_all(answer.as_bytes());
        });
        let said = Stores::new().fetch(&pin).expect_err("it is not there").to_string();
        assert!(said.contains(pin.url.as_str()) && expected.iter().all(|word| said.contains(word)), "{said}");
    };
    check(MOVED, &["301", "it has moved to `https://new.example.org/x`", "record that address"]);
    check("404 Not Found", &["404", "no repository is there that everybody may read"]);
    check("200 OK\r\nContent-Type: text/html", &["200", "no git repository is there"]);
}

#[test]
fn repository_that_moved_on_its_host_is_followed_and_not_round_in_circles() {
    let upstream = Upstream::new();
    let served = Served::start(&upstream, true);
    let pin = served.pin(&upstream.commit(&[("file", 0o100644, "bytes")]));
    let at = |place: &str| {
        let url = pin.url.as_str().replace("/upstream", place);
        GitPin::new(url.parse().expect("an address"), pin.commit.clone())
    };
    Stores::new().fetch(&at("/moved")).expect("it is at its new place");
    let said = Stores::new().fetch(&at("/round")).expect_err("it is nowhere").to_string();
    assert!(said.contains("301") && said.contains("it has moved to"), "{said}");
}

#[test]
fn commit_with_too_much_in_it_is_refused_before_it_is_laid_out() {
    let (upstream, served) = (Upstream::new(), |upstream: &Upstream| Served::start(upstream, true));
    let many: Vec<_> = (0..30).map(|number| format!("file-{number}")).collect();
    let many: Vec<_> = many.iter().map(|path| (path.as_str(), 0o100644, "the same few bytes")).collect();
    let pin = upstream.commit(&many);
    let over_http = served(&upstream).pin(&pin);
    let check = |bounds: Bounds, expected: fn(&GitError) -> bool| {
        for pin in [&pin, &over_http] {
            let mut stores = Stores::new();
            stores.store.bounds = bounds;
            let error = stores.fetch(pin).expect_err("it is too much");
            assert!(expected(&error) && error.to_string().contains(pin.url.as_str()), "{error}");
            let left: Vec<_> = fs::read_dir(stores.folder.path().join("git")).expect("a folder").collect();
            assert!(left.is_empty(), "{left:?}");
            assert!(!stores.store.holds(pin));
        }
    };
    let bounds = Bounds::default();
    check(Bounds { bytes: 18 * 29, ..bounds }, |error| matches!(error, GitError::TooLarge { .. }));
    check(Bounds { entries: 29, ..bounds }, |error| matches!(error, GitError::TooLarge { .. }));
    check(Bounds { file: 17, ..bounds }, |error| {
        let said = error.to_string();
        error.is_refusal() && said.contains("has 18 bytes") && said.contains("takes 17 of one file at most")
    });

    // What comes over the network ends in its middle.
    let noise: String =
        (0..40_000_u32).map(|number| format!("{}\n", number.wrapping_mul(2_654_435_761))).collect();
    let pin = served(&upstream).pin(&upstream.commit(&[("noise", 0o100644, &noise)]));
    let mut stores = Stores::new();
    stores.store.bounds.bytes = 50_000;
    let error = stores.fetch(&pin).expect_err("it is too much");
    assert!(matches!(error, GitError::TooLarge { .. }), "{error:?}");
    assert!(stores.bytes.load(Ordering::Relaxed) < 150_000, "not all of it came");

    // A pack of another node is no way around.
    let roomy = Stores::new();
    roomy.fetch(&pin).expect("fetched");
    let mut packed = tempfile::tempfile().expect("a file");
    roomy.store.pack(&pin, &mut packed).expect("packed");
    rewind(&mut packed);
    let error = stores.store.unpack(&pin, &packed).expect_err("it is too much");
    assert!(matches!(error, GitError::TooLarge { .. }), "{error:?}");
    roomy.checkout(&pin).expect("laid out");
    let small = GitStore { bounds: Bounds { bytes: 1000, ..bounds }, ..roomy.store.clone() };
    let into = roomy.folder.path().join("small");
    let error = small.checkout(&pin, &into, &CancellationToken::new()).expect_err("it is too much");
    assert!(matches!(error, GitError::TooLarge { .. }) && !into.exists(), "{error:?}");
}

#[test]
fn folders_that_hold_each_other_many_times_are_not_counted_to_their_end() {
    let upstream = Upstream::new();
    let blob = upstream.repository.blob(b"x").expect("written");
    let mut tree = blob;
    for depth in 0..12 {
        let mut builder = upstream.repository.treebuilder(None).expect("a builder");
        for number in 0..10 {
            let mode = if depth == 0 { 0o100644 } else { 0o040000 };
            builder.insert(format!("{number}"), tree, mode).expect("inserted");
        }
        tree = builder.write().expect("written");
    }
    let tree = upstream.repository.find_tree(tree).expect("is there");
    let author = Signature::new("a", "a@example.org", &git2::Time::new(0, 0)).expect("a name");
    let commit = upstream.repository.commit(Some("HEAD"), &author, &author, "x", &tree, &[]);
    let commit = commit.expect("committed").to_string().parse().expect("a commit");
    let pin = GitPin::new(upstream.url().parse().expect("an address"), commit);
    let error = Stores::new().fetch(&pin).expect_err("it has a million million files");
    assert!(matches!(error, GitError::TooLarge { .. }), "{error:?}");
}

#[test]
fn list_of_submodules_that_includes_files_of_this_machine_is_refused_before_any_is_opened() {
    let (inner, stores) = (Upstream::new(), Stores::new());
    let pinned = inner.commit(&[("lib.py", 0o100644, "inner\n")]);
    let modules = format!("[submodule \"lib\"]\n\tpath = lib\n\turl = {}\n", inner.url());
    // Whoever opens it for reading waits for somebody who writes.
    let pipe = stores.folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("made");
    let fetch = |section: &str| {
        let modules = format!("{modules}{section}\n\tpath = {}\n", pipe.display());
        let files = [(".gitmodules", 0o100644, modules.as_str()), ("lib", 0o160000, pinned.commit.as_str())];
        // Not dropped before it is fetched.
        let outer = Upstream::new();
        stores.fetch(&outer.commit(&files))
    };
    let is_open = std::thread::spawn({
        let pipe = pipe.clone();
        // Whoever reads it is let go, and seen.
        move || fs::OpenOptions::new().write(true).open(pipe)
    });
    for section in ["[include]", "[ InClude ]", "  [\tincludeIf \"gitdir:/\"]", "[submodule \"x\"] [INCLUDE]"]
    {
        let error = fetch(section).expect_err(section);
        assert!(
            matches!(&error, GitError::Entry { entry, .. } if entry == ".gitmodules"),
            "{section}: {error}"
        );
        assert!(error.to_string().contains("includes other files") && error.is_refusal(), "{error}");
    }
    fetch("[submodule \"includes\"]").expect("that is no such section");
    assert!(!is_open.is_finished(), "nobody opened it");
}
