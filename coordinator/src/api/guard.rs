//! Who may speak to the API at all: the Host allow-list, the Origin check, and the key.
//!
//! The farm often listens on loopback, where any web page that its user has open could reach it: by a
//! cross-site request, or by a name that is rebound to 127.0.0.1. Both are refused here before a route
//! sees them, whatever the method. Not here: what a key may do; scopes come with the keys' own routes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::api::error::ApiError;
use crate::handle::CoordinatorHandle;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// What a browser may run in answers of the API: nothing.
const CSP_API: &str = "default-src 'none'; frame-ancestors 'none'; sandbox";
/// The page's own files, and pictures and sounds that it has fetched with the key.
const CSP_PAGE: &str = "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; \
     object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";
/// The documentation page sets styles and inline pictures of its own.
const CSP_DOCS: &str = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; \
     object-src 'none'; base-uri 'none'; frame-ancestors 'none'";

/// The rules, fixed when the server starts.
#[derive(Debug)]
pub(crate) struct Guard {
    bound: IpAddr,
    hosts: Vec<String>,
    origins: Vec<String>,
}

impl Guard {
    /// The rules of a server that listens at `bound`.
    pub(crate) fn new(bound: SocketAddr, hosts: &[String], origins: &[String]) -> Self {
        let lower = |texts: &[String]| {
            texts.iter().map(|text| text.trim_end_matches('/').to_ascii_lowercase()).collect()
        };
        Self { bound: bound.ip(), hosts: lower(hosts), origins: lower(origins) }
    }

    /// Whether this is a name of the farm.
    ///
    /// A rebound name is a name, never an address, so that any address is good where the server
    /// listens on all of them.
    fn is_own(&self, host: &Authority) -> bool {
        let name = host.host().to_ascii_lowercase();
        let is_listed = |own: &String| *own == name || own.eq_ignore_ascii_case(host.as_str());
        if name == "localhost" || self.hosts.iter().any(is_listed) {
            return true;
        }
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        address.is_ok_and(|ip| ip.is_loopback() || ip == self.bound || self.bound.is_unspecified())
    }

    fn is_listed(&self, origin: &str) -> bool {
        self.origins.iter().any(|listed| listed.eq_ignore_ascii_case(origin))
    }
}

/// Refuses a foreign Host, a foreign Origin, and what a browser says comes from another site; answers
/// the preflights of listed origins; puts the security headers on every answer.
pub(crate) async fn check_source(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let listed = listed_origin(&guard, request.headers());
    let path = request.uri().path();
    let policy = if path.starts_with("/docs") {
        CSP_DOCS
    } else if path.starts_with("/v1/") {
        CSP_API
    } else {
        CSP_PAGE
    };
    let mut response = match refuse_foreign(&guard, &request) {
        Err(error) => error.into_response(),
        Ok(()) if listed.is_some() && is_preflight(&request) => preflight(),
        Ok(()) => next.run(request).await,
    };
    let headers = response.headers_mut();
    let mut put = |name: HeaderName, value: &'static str| {
        headers.insert(name, HeaderValue::from_static(value));
    };
    put(header::CONTENT_SECURITY_POLICY, policy);
    put(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    put(header::X_FRAME_OPTIONS, "DENY");
    put(header::REFERRER_POLICY, "no-referrer");
    put(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    if let Some(origin) = listed {
        put(header::ACCESS_CONTROL_EXPOSE_HEADERS, "location, etag, content-disposition, content-range");
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    } else {
        put(HeaderName::from_static("cross-origin-resource-policy"), "same-origin");
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Lets only those pass who show a key in `Authorization: Bearer`; a key in the address is no key,
/// because addresses are logged and shared.
pub(crate) async fn require_key(
    State(coordinator): State<CoordinatorHandle>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let value = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key = value
        .and_then(|value| value.split_once(' '))
        .and_then(|(scheme, key)| scheme.eq_ignore_ascii_case("bearer").then_some(key.trim()));
    let Some(key) = key else {
        return Err(ApiError::Unauthorized(
            "a key is needed: send it as `Authorization: Bearer KEY`; the coordinator printed one at its \
             first start",
        ));
    };
    if coordinator.authenticate(key).await?.is_none() {
        return Err(ApiError::Unauthorized("this farm does not know that key"));
    }
    Ok(next.run(request).await)
}

fn refuse_foreign(guard: &Guard, request: &Request) -> Result<(), ApiError> {
    let host = host_of(request)?;
    if !guard.is_own(&host) {
        return Err(ApiError::Misdirected(host.to_string()));
    }
    let headers = request.headers();
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or("");
        let same = origin.split_once("://").is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(host.as_str()));
        if !same && !guard.is_listed(origin) {
            return Err(ApiError::Forbidden(format!(
                "a web page of `{origin}` may not speak to this farm; allow it with `--allow-origin` if it \
                 should"
            )));
        }
    } else if is_cross_site(headers) && !is_navigation(request) {
        return Err(ApiError::Forbidden("a web page of another site may not speak to this farm".to_owned()));
    }
    Ok(())
}

/// The name that the caller thinks it speaks to: HTTP/2's authority, or the one Host header.
fn host_of(request: &Request) -> Result<Authority, ApiError> {
    if let Some(authority) = request.uri().authority() {
        return Ok(authority.clone());
    }
    let mut values = request.headers().get_all(header::HOST).iter();
    let host = values.next().filter(|_| values.next().is_none());
    host.and_then(|host| Authority::try_from(host.as_bytes()).ok())
        // A user's name may stand before a host only in addresses, never in this header.
        .filter(|host| !host.as_str().contains('@'))
        .ok_or_else(|| ApiError::Malformed("the request has no Host header, or not a good one".to_owned()))
}

fn is_cross_site(headers: &HeaderMap) -> bool {
    headers.get(SEC_FETCH_SITE).is_some_and(|site| site != "same-origin" && site != "none")
}

/// Following a link to the page from elsewhere is fine: a navigation carries no key and reads nothing.
fn is_navigation(request: &Request) -> bool {
    request.method() == Method::GET
        && !request.uri().path().starts_with("/v1/")
        && request.headers().get(SEC_FETCH_MODE).is_some_and(|mode| mode == "navigate")
}

fn listed_origin(guard: &Guard, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    guard.is_listed(origin.to_str().ok()?).then(|| origin.clone())
}

fn is_preflight(request: &Request) -> bool {
    request.method() == Method::OPTIONS
        && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight() -> Response {
    let headers = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, POST"),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            "authorization, content-type, last-event-id, range, if-none-match",
        ),
        (header::ACCESS_CONTROL_MAX_AGE, "600"),
    ];
    (StatusCode::NO_CONTENT, headers).into_response()
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;
    use crate::api::testing::{KEY, TestFarm, request};

    fn guard(bound: &str) -> Guard {
        let bound = bound.parse().unwrap();
        Guard::new(bound, &["Farm.example".to_owned()], &["https://studio.example/".to_owned()])
    }

    fn is_own(guard: &Guard, host: &'static str) -> bool {
        guard.is_own(&Authority::from_static(host))
    }

    #[test]
    fn loopback_names_and_listed_names_are_the_farms_own() {
        let guard = guard("127.0.0.1:8288");
        for own in
            ["localhost:8288", "LOCALHOST", "127.0.0.1:8288", "[::1]:8288", "farm.example", "FARM.example:80"]
        {
            assert!(is_own(&guard, own), "{own}");
        }
        for foreign in [
            "evil.example",
            "127.0.0.1.evil.example",
            "192.0.2.7:8288",
            "localhost.evil.example",
            "localhost.",
            "farm.example.",
            "evil-farm.example",
            "[2001:db8::1]:8288",
            "2130706433",
            "0x7f.1",
        ] {
            assert!(!is_own(&guard, foreign), "{foreign}");
        }
    }

    #[test]
    fn any_address_but_no_unknown_name_is_own_where_all_are_listened_on() {
        let guard = guard("0.0.0.0:8288");
        assert!(is_own(&guard, "192.0.2.7:8288"));
        assert!(!is_own(&guard, "rebound.example:8288"));
    }

    #[test]
    fn listed_origin_is_told_from_others() {
        let guard = guard("127.0.0.1:8288");
        assert!(guard.is_listed("https://studio.example"));
        assert!(!guard.is_listed("http://studio.example"));
        assert!(!guard.is_listed("null"));
    }

    async fn status(farm: &TestFarm, request: axum::http::request::Builder) -> StatusCode {
        farm.send(request.body(Body::empty()).unwrap()).await.status()
    }

    fn bare(method: Method, path: &str) -> axum::http::request::Builder {
        Request::builder().method(method).uri(path).header(header::HOST, "127.0.0.1:8288")
    }

    #[tokio::test]
    async fn cross_site_post_is_refused_even_with_a_key() {
        let farm = TestFarm::start().await;
        let post = || request(Method::POST, "/v1/invites").header(header::CONTENT_TYPE, "text/plain");
        for origin in ["https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1:1"]
        {
            assert_eq!(status(&farm, post().header(header::ORIGIN, origin)).await, 403, "{origin}");
        }
        assert_eq!(status(&farm, post().header(SEC_FETCH_SITE, "cross-site")).await, 403);
        assert_eq!(status(&farm, post().header(SEC_FETCH_SITE, "same-site")).await, 403);
        let own = request(Method::GET, "/v1/farm").header(header::ORIGIN, "http://127.0.0.1:8288");
        assert_eq!(status(&farm, own.header(SEC_FETCH_SITE, "same-origin")).await, 200);
    }

    #[tokio::test]
    async fn foreign_host_is_refused_on_every_surface() {
        let farm = TestFarm::start().await;
        for path in ["/v1/farm", "/", "/healthz", "/docs/", "/v1/openapi.json", "/nothing"] {
            let foreign = Request::builder().uri(path).header(header::HOST, "rebound.example:8288");
            let response = farm.send(foreign.body(Body::empty()).unwrap()).await;
            assert_eq!(response.status(), StatusCode::MISDIRECTED_REQUEST, "{path}");
            assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        }
        assert_eq!(status(&farm, Request::builder().uri("/healthz")).await, 400);
        for odd in ["", "localhost@evil.example", "evil.example@localhost", "local host", "localhost/x"] {
            let odd = Request::builder().uri("/healthz").header(header::HOST, odd);
            assert_eq!(status(&farm, odd).await, 400);
        }
        let two = Request::builder().uri("/healthz").header(header::HOST, "localhost");
        assert_eq!(status(&farm, two.header(header::HOST, "rebound.example")).await, 400);
        // What HTTP/2 calls the authority counts, and what stands in a Host header beside it does not.
        let authority = Request::builder().uri("http://rebound.example/healthz");
        assert_eq!(status(&farm, authority.header(header::HOST, "localhost")).await, 421);
        assert_eq!(status(&farm, Request::builder().uri("http://localhost:8288/healthz")).await, 200);
        let listed = Request::builder().uri("/healthz").header(header::HOST, "farm.example");
        assert_eq!(status(&farm, listed).await, 200);
    }

    #[tokio::test]
    async fn key_is_needed_and_taken_only_from_the_header() {
        let farm = TestFarm::start().await;
        let response = farm.send(bare(Method::GET, "/v1/farm").body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        assert!(response.headers()[header::WWW_AUTHENTICATE].to_str().unwrap().starts_with("Bearer"));
        let wrong = bare(Method::GET, "/v1/farm").header(header::AUTHORIZATION, "Bearer cfk_wrong");
        assert_eq!(status(&farm, wrong).await, 401);
        let basic = bare(Method::GET, "/v1/farm").header(header::AUTHORIZATION, format!("Basic {KEY}"));
        assert_eq!(status(&farm, basic).await, 401);
        assert_eq!(status(&farm, bare(Method::GET, &format!("/v1/farm?key={KEY}"))).await, 401);
        for open in ["/healthz", "/readyz", "/v1/openapi.json", "/docs/"] {
            assert_eq!(status(&farm, bare(Method::GET, open)).await, 200, "{open}");
        }
    }

    #[tokio::test]
    async fn only_listed_origins_get_cors_headers() {
        let farm = TestFarm::start().await;
        let preflight = |origin: &'static str| {
            let request = bare(Method::OPTIONS, "/v1/jobs").header(header::ORIGIN, origin);
            request.header(header::ACCESS_CONTROL_REQUEST_METHOD, "GET").body(Body::empty()).unwrap()
        };
        let allowed = farm.send(preflight("https://studio.example")).await;
        assert_eq!(allowed.status(), StatusCode::NO_CONTENT);
        assert_eq!(allowed.headers()[header::ACCESS_CONTROL_ALLOW_ORIGIN], "https://studio.example");
        let refused = farm.send(preflight("https://evil.example")).await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert!(!refused.headers().contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
        let plain = farm.send(request(Method::GET, "/v1/jobs").body(Body::empty()).unwrap()).await;
        assert!(!plain.headers().contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
        assert_eq!(plain.headers()[header::X_CONTENT_TYPE_OPTIONS], "nosniff");
        assert!(
            plain.headers()[header::CONTENT_SECURITY_POLICY]
                .to_str()
                .unwrap()
                .contains("frame-ancestors 'none'")
        );
    }
}
