//! Ranges from the internet: each way in which a server may answer, and who sees a token.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mesh::origin::{HF_TOKEN, Origin, OriginEvent, OriginFailed, OriginReader, Tokens};
use protocol::PIECE_SIZE;
use tokio::time::timeout;

use crate::farm::{PATIENCE, bytes};
use crate::web::{Asked, Authority, Cut, Handler, Reply, Web, reader};

const MIB: usize = PIECE_SIZE as usize;

/// A file of three and a half pieces.
fn file() -> Bytes {
    Bytes::from(bytes(3 * MIB + MIB / 2))
}

/// Reads a whole file; what changed meanwhile is read again.
async fn read_all(origin: &Origin) -> Result<Bytes, OriginFailed> {
    let size = origin.size() as usize;
    let mut all = vec![0; size];
    let read = async {
        loop {
            let mut reading = origin.read(0..size.div_ceil(MIB) as u64);
            loop {
                match reading.next().await? {
                    Some(OriginEvent::Piece { index, bytes, .. }) => {
                        let at = index as usize * MIB;
                        all[at..at + bytes.len()].copy_from_slice(&bytes);
                    }
                    Some(OriginEvent::Changed { .. }) => break,
                    None => return Ok(()),
                }
            }
        }
    };
    timeout(PATIENCE, read).await.expect("it ends")?;
    Ok(Bytes::from(all))
}

async fn read_from(reader: &OriginReader, urls: &[String], expected: &Bytes) {
    let origin = Origin::new(reader.clone(), urls, expected.len() as u64);
    let all = read_all(&origin).await.expect("the file can be read");
    assert!(all == *expected, "the bytes are others");
}

async fn failure_of(reader: &OriginReader, urls: &[String]) -> String {
    let origin = Origin::new(reader.clone(), urls, file().len() as u64);
    read_all(&origin).await.map(drop).expect_err("no URL gives the file").to_string()
}

/// Counts the calls of a handler.
fn counted(handler: impl Fn(usize, &Asked) -> Reply + Send + Sync) -> impl Fn(&Asked) -> Reply + Send + Sync {
    let count = AtomicUsize::new(0);
    move |asked| handler(count.fetch_add(1, Ordering::Relaxed), asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn range_is_read_as_pieces_and_its_size_is_found() {
    let web = Web::start(|asked| Reply::range(asked, &file(), "a")).await;
    let (reader, urls) = (reader(|_| ()), [web.url("/model")]);
    assert_eq!(reader.size(&urls).await.expect("it says so"), file().len() as u64);
    read_from(&reader, &urls, &file()).await;

    let origin = Origin::new(reader, &urls, file().len() as u64);
    let mut reading = origin.read(3..9);
    let Ok(Some(OriginEvent::Piece { index: 3, bytes, mirror: 0 })) = reading.next().await else {
        panic!("the last piece comes")
    };
    assert_eq!(bytes, file()[3 * MIB..]);
    assert!(matches!(reading.next().await, Ok(None)));
    let asked = web.asked().last().cloned().expect("it was asked");
    assert_eq!(asked.header("range"), Some("bytes=3145728-3670015"));
}

#[tokio::test(flavor = "multi_thread")]
async fn token_goes_to_its_own_host_and_to_no_redirect_elsewhere() {
    let authority = Authority::new();
    let elsewhere =
        Web::start_tls(&authority, "cdn.example.org", |asked| Reply::range(asked, &file(), "a")).await;
    let hub = Web::start_tls(&authority, "huggingface.co", |asked| match asked.header("authorization") {
        Some("Bearer hf_secret") => Reply::redirect("https://cdn.example.org/signed?with=secret"),
        _ => Reply::status(401),
    })
    .await;
    let reader = reader(|config| {
        config.allow_http = false;
        config.extra_roots = vec![authority.pem()];
        config.resolve = vec![
            ("huggingface.co".to_owned(), hub.address),
            ("cdn.example.org".to_owned(), elsewhere.address),
        ];
        let read = |name: &str| (name == HF_TOKEN).then(|| "hf_secret".to_owned());
        config.tokens = Tokens::from_variables(read).expect("it is a token");
    });
    read_from(&reader, &["https://huggingface.co/a/model".to_owned()], &file()).await;
    let document = reader.document("https://huggingface.co/api/models/a", 4 * MIB).await;
    assert!(document.is_ok_and(|document| document.bytes == file()));
    let asked = elsewhere.asked();
    assert!(
        !asked.is_empty() && asked.iter().all(|asked| asked.header("authorization").is_none()),
        "{asked:?}"
    );
    assert!(asked.iter().all(|asked| asked.header("referer").is_none()), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_that_wants_a_token_is_told_of_with_what_to_do() {
    let authority = Authority::new();
    for (status, token, words) in [
        (401, None, ["set `HF_TOKEN`", "licence"]),
        (403, Some("hf_secret"), ["token of `HF_TOKEN` was sent", "licence"]),
    ] {
        let hub = Web::start_tls(&authority, "huggingface.co", move |_| Reply::status(status)).await;
        let reader = reader(|config| {
            config.extra_roots = vec![authority.pem()];
            config.resolve = vec![("huggingface.co".to_owned(), hub.address)];
            let tokens = Tokens::from_variables(|_| token.map(str::to_owned));
            config.tokens = tokens.expect("it is a token");
        });
        let failure = failure_of(&reader, &["https://huggingface.co/a/model?x=secret".to_owned()]).await;
        for word in words {
            assert!(failure.contains(word), "{failure}");
        }
        assert!(failure.contains(&status.to_string()) && !failure.contains("secret"), "{failure}");
        assert_eq!(hub.asked().len(), 1, "what is denied is not asked for again");
    }
    let web = Web::start(|_| Reply::status(403)).await;
    let failure = failure_of(&reader(|_| ()), &[web.url("/model")]).await;
    assert!(failure.contains("none is known for this host"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_this_network_and_plain_http_are_refused() {
    let web = Web::start(|asked| Reply::range(asked, &file(), "a")).await;
    let port = web.address.port();
    let strict = reader(|config| config.allow_private = false);
    for url in
        [format!("http://127.0.0.1:{port}/"), format!("http://localhost:{port}/"), "http://[::1]/".to_owned()]
    {
        let failure = failure_of(&strict, std::slice::from_ref(&url)).await;
        assert!(failure.contains("no address on the internet"), "{url}: {failure}");
    }
    let https_only = reader(|config| config.allow_http = false);
    for url in [web.url("/"), "ftp://example.org/".to_owned(), "https://me@example.org/".to_owned()] {
        let failure = failure_of(&https_only, std::slice::from_ref(&url)).await;
        assert!(failure.contains("only https URLs"), "{url}: {failure}");
    }
    assert_eq!(web.asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_into_this_network_to_http_and_without_end_are_refused() {
    let authority = Authority::new();
    let inside = Web::start(|asked| Reply::range(asked, &file(), "a")).await;
    let to = inside.url("/metadata");
    let outside = Web::start_tls(&authority, "example.org", move |asked| match asked.path.as_str() {
        "/plain" => Reply::redirect("http://example.org/x"),
        "/inside" => Reply::redirect(to.replace("http:", "https:")),
        "/nowhere" => Reply::status(302),
        _ => Reply::redirect(format!("{}x", asked.path)),
    })
    .await;
    let reader = reader(|config| {
        config.allow_private = false;
        config.extra_roots = vec![authority.pem()];
        config.resolve = vec![("example.org".to_owned(), outside.address)];
    });
    for (path, word) in [
        ("plain", "redirects to no https URL"),
        ("inside", "no address on the internet"),
        ("nowhere", "redirects to no https URL"),
        ("loop", "more than 10 times"),
    ] {
        let failure = failure_of(&reader, &[format!("https://example.org/{path}")]).await;
        assert!(failure.contains(word), "{path}: {failure}");
    }
    assert_eq!(inside.asked().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn link_that_ran_out_is_asked_for_anew_once() {
    let web = Web::start(counted(|count, asked| match asked.path.as_str() {
        "/model" => Reply::redirect(format!("/signed/{count}")),
        "/signed/0" if asked.range(file().len()).is_some_and(|range| range.start > 0) => Reply::status(403),
        _ => Reply::range(asked, &file(), "a"),
    }))
    .await;
    let origin = Origin::new(reader(|_| ()), &[web.url("/model")], file().len() as u64);
    for piece in 0..3 {
        let next = origin.read(piece..piece + 1).next().await.expect("it can be read");
        assert!(matches!(next, Some(OriginEvent::Piece { index, .. }) if index == piece), "{next:?}");
    }
    let paths: Vec<_> = web.asked().into_iter().map(|asked| asked.path).collect();
    let expected = ["/model", "/signed/0", "/signed/0", "/model", "/signed/3", "/signed/3"];
    assert_eq!(paths, expected, "a link is kept while it is good");

    let dead = Web::start(|asked| match asked.path.as_str() {
        "/model" => Reply::redirect("/signed"),
        _ => Reply::status(410),
    })
    .await;
    let failure = failure_of(&reader(|_| ()), &[dead.url("/model")]).await;
    assert!(failure.contains("410"), "{failure}");
    assert_eq!(dead.asked().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn busy_server_is_waited_for_and_not_for_ever() {
    let web = Web::start(counted(|count, asked| match count {
        0 => Reply::status(429).with("retry-after", "0"),
        1 => Reply::status(503),
        _ => Reply::range(asked, &file(), "a"),
    }))
    .await;
    read_from(&reader(|_| ()), &[web.url("/")], &file()).await;
    assert_eq!(web.asked().len(), 3);

    let patient = Web::start(|_| Reply::status(429).with("retry-after", "3600")).await;
    let failure = failure_of(&reader(|_| ()), &[patient.url("/")]).await;
    assert!(failure.contains("asks to wait 3600 s"), "{failure}");
    assert_eq!(patient.asked().len(), 1);

    let broken = Web::start(|_| Reply::status(500)).await;
    let failure = failure_of(&reader(|config| config.retries = 2), &[broken.url("/")]).await;
    assert!(failure.contains("500"), "{failure}");
    assert_eq!(broken.asked().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_breaks_is_taken_up_at_the_next_byte() {
    let web = Web::start(counted(|count, asked| {
        let reply = Reply::range(asked, &file(), "a");
        if count < 2 { reply.cut(Cut::EndAfter(MIB + 1000)) } else { reply }
    }))
    .await;
    read_from(&reader(|_| ()), &[web.url("/")], &file()).await;
    let ranges: Vec<_> = web.asked().iter().filter_map(|asked| asked.range(file().len())).collect();
    let size = file().len();
    assert_eq!(ranges, [0..size, MIB + 1000..size, 2 * MIB + 2000..size]);
    assert_eq!(web.sent(), size as u64, "no byte is sent twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_server_gives_way_to_the_next_url() {
    let silent = Web::start(|asked| Reply::range(asked, &file(), "a").cut(Cut::HangAfter(1000))).await;
    let good = Web::start(|asked| Reply::range(asked, &file(), "b")).await;
    let reader = reader(|config| (config.silence, config.retries) = (Duration::from_millis(100), 1));
    read_from(&reader, &[silent.url("/"), good.url("/")], &file()).await;
    assert_eq!((silent.asked().len(), good.asked().len()), (2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_without_ranges_is_read_once_from_its_beginning() {
    let web = Web::start(|_| Reply::whole(&file())).await;
    let origin = Origin::new(reader(|_| ()), &[web.url("/")], file().len() as u64);
    let mut reading = origin.read(2..3);
    let mut indices = Vec::new();
    while let Some(event) = reading.next().await.expect("it can be read") {
        let OriginEvent::Piece { index, bytes, .. } = event else { panic!("nothing changes") };
        assert!(file()[index as usize * MIB..].starts_with(&bytes));
        indices.push(index);
    }
    assert_eq!(indices, [0, 1, 2, 3], "what passes by is given as well");
    assert_eq!(web.asked().len(), 2);

    let other = Web::start(|asked| Reply::range(asked, &file(), "a")).await;
    let origin = Origin::new(reader(|_| ()), &[web.url("/"), other.url("/")], file().len() as u64);
    let next = origin.read(2..3).next().await.expect("it can be read");
    assert!(matches!(next, Some(OriginEvent::Piece { index: 2, mirror: 1, .. })), "{next:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn file_of_another_size_and_ranges_that_nobody_asked_for_are_refused() {
    let longer = Bytes::from([&file()[..], b"more"].concat());
    let replies: [(&str, Arc<Handler>); 4] = [
        ("file of 3670020 bytes", {
            let longer = longer.clone();
            Arc::new(move |asked| Reply::range(asked, &longer, "a"))
        }),
        ("file of 3670020 bytes", Arc::new(move |_| Reply::whole(&longer))),
        ("another one", {
            Arc::new(|_| Reply::whole(&file()).with("content-range", "bytes 1-9/3670016").with_status(206))
        }),
        ("not there", Arc::new(|_| Reply::status(404))),
    ];
    for (words, reply) in replies {
        let web = Web::start(move |asked| reply(asked)).await;
        let failure = failure_of(&reader(|_| ()), &[web.url("/")]).await;
        assert!(failure.contains(words), "{failure}");
        assert_eq!(web.asked().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn file_that_changes_between_ranges_is_begun_anew_and_not_for_ever() {
    let other = Bytes::from(file().iter().map(|byte| !byte).collect::<Vec<_>>());
    let changed = other.clone();
    let web = Web::start(counted(move |count, asked| match count {
        0 => Reply::range(asked, &file(), "a").cut(Cut::EndAfter(2 * MIB)),
        _ => Reply::range(asked, &changed, "b"),
    }))
    .await;
    read_from(&reader(|_| ()), &[web.url("/")], &other).await;
    let asked = web.asked();
    assert_eq!(asked[1].header("if-range"), Some("\"a\""), "{asked:?}");

    let restless = Web::start(counted(|count, asked| {
        Reply::range(asked, &file(), &count.to_string()).cut(Cut::EndAfter(MIB))
    }))
    .await;
    let failure = failure_of(&reader(|_| ()), &[restless.url("/")]).await;
    assert!(failure.contains("changes the file"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_host_gets_no_more_connections_than_it_may() {
    let web = Web::start(|asked| Reply::range(asked, &file(), "a").cut(Cut::HangAfter(MIB))).await;
    let reader = reader(|config| config.connections = 2);
    let origin = Origin::new(reader, &[web.url("/")], file().len() as u64);
    let mut readings: Vec<_> = (0..3).map(|piece| origin.read(piece..piece + 2)).collect();
    for reading in &mut readings[..2] {
        assert!(matches!(reading.next().await, Ok(Some(OriginEvent::Piece { .. }))));
    }
    let mut third = readings.pop().expect("there are three");
    let waiting = tokio::spawn(async move { third.next().await.map(|event| event.is_some()) });
    // The third one is asked for only when one of the others has gone.
    readings.pop();
    assert!(matches!(timeout(PATIENCE, waiting).await, Ok(Ok(Ok(true)))));
    assert_eq!(web.asked().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn failure_names_each_url_with_its_reason() {
    let (gone, closed) = (Web::start(|_| Reply::status(404)).await, Web::start(|_| Reply::status(200)).await);
    let closed_url = closed.url("/b");
    drop(closed);
    let urls = [gone.url("/a?key=secret"), closed_url, "no url".to_owned()];
    let failure = failure_of(&reader(|config| config.retries = 0), &urls).await;
    for words in ["/a: ", "404", "/b: ", "no connection", "no url: it is no URL"] {
        assert!(failure.contains(words), "{failure}");
    }
    assert!(!failure.contains("secret"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn document_is_read_whole_in_time_and_never_beyond_its_limit() {
    let text = Bytes::from(vec![b'x'; 1000]);
    let web = Web::start(move |asked| match asked.path.as_str() {
        "/whole" => Reply::whole(&text).with("link", "<https://example.org/2>; rel=\"next\""),
        "/moved" => Reply::redirect("/whole"),
        "/short" => Reply::whole(&text).cut(Cut::EndAfter(10)),
        "/hangs" => Reply::whole(&text).cut(Cut::HangAfter(10)),
        _ => Reply::status(404),
    })
    .await;
    let reader = reader(|config| {
        config.connect_timeout = Duration::from_millis(200);
        config.silence = Duration::from_millis(200);
    });
    for path in ["/whole", "/moved"] {
        let document = reader.document(&web.url(path), 1000).await.expect("it is there");
        assert_eq!((document.bytes.len(), document.next.as_deref()), (1000, Some("https://example.org/2")));
    }
    let failures =
        [("/whole", 999, "more than 999 bytes"), ("/short", 1000, "broke"), ("/hangs", 1000, "within 0.4 s")];
    for (path, limit, words) in failures.into_iter().chain([("/gone", 1000, "404")]) {
        let error = reader.document(&web.url(path), limit).await.expect_err("there is none").to_string();
        assert!(error.contains(words), "{path}: {error}");
    }
}
