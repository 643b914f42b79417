//! `spanring healthcheck` sends one request to the admin port of a running proxy. It is meant for containers without a
//! shell.
//!
//! The request is written by hand as HTTP/1.0: it has one line and the response is short.

use std::{io::Write, process::ExitCode, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::admin_address::AdminAddress;
use crate::settings::values::GoDuration;

/// Largest number of bytes that are read of a response.
const LONGEST: u64 = 64 << 10;

/// Arguments of `spanring healthcheck`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Admin address of the proxy, with or without http://
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8888")]
    admin: AdminAddress,
    /// Ask whether the process is alive (/livez) instead of whether it is ready (/readyz)
    #[arg(long)]
    live: bool,
    /// Time limit for the response
    #[arg(long, value_name = "TIME", default_value = "2s")]
    timeout: GoDuration,
}

/// Sends the request and writes one line. The exit code is 0 if the proxy answered 200, else 1.
pub async fn run(args: Args, out: &mut (dyn Write + Send)) -> anyhow::Result<ExitCode> {
    let path = if args.live { "/livez" } else { "/readyz" };
    let within: Duration = args.timeout.0;
    let answer = match timeout(within, ask(&args.admin, path)).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {}", args.timeout)),
    };
    let (yes, line) = match answer {
        Ok((200, said)) => (true, said),
        Ok((503, said)) => (false, said),
        Ok((status, _)) => {
            (false, format!("http://{}{path} answers with status {status}: is it a spanring's admin port?", args.admin))
        }
        Err(reason) => (false, format!("http://{}{path}: {reason}", args.admin)),
    };
    writeln!(out, "{line}")?;
    Ok(if yes { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Requests `path`; returns the HTTP status and the body joined into one line.
async fn ask(admin: &AdminAddress, path: &str) -> Result<(u16, String), String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect(admin.host_and_port()).await.map_err(failed)?;
    let question = format!("GET {path} HTTP/1.0\r\nhost: {admin}\r\n\r\n");
    stream.write_all(question.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await.map_err(failed)?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|status| status.parse().ok());
    let Some(status) = status else { return Err("the answer is not HTTP".to_owned()) };
    let (_, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let lines: Vec<&str> = body.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    Ok((status, lines.join("; ")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use tokio::net::TcpListener;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    /// Runs a check against a server that sends `answer`, or never answers; returns the exit code and the line written.
    async fn check(answer: Option<&str>, more: &[&str]) -> (String, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let line = ["healthcheck", "--admin", &address].into_iter().chain(more.iter().copied());
        let args = Line::parse_from(line).args;
        let mut out = Vec::new();
        let code = tokio::select! {
            biased;
            code = run(args, &mut out) => code.unwrap(),
            () = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut question = [0; 1000];
                let len = stream.read(&mut question).await.unwrap();
                let path = if more.contains(&"--live") { "/livez" } else { "/readyz" };
                assert!(question[..len].starts_with(format!("GET {path} HTTP/1.0\r\n").as_bytes()));
                match answer {
                    Some(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                    None => std::future::pending().await,
                }
                drop(stream);
                std::future::pending::<()>().await;
            } => unreachable!(),
        };
        (format!("{code:?}"), String::from_utf8(out).unwrap())
    }

    #[tokio::test]
    async fn the_answer_is_a_line_and_an_exit_code() {
        let yes = format!("{:?}", ExitCode::SUCCESS);
        let no = format!("{:?}", ExitCode::FAILURE);
        let (code, line) = check(Some("HTTP/1.0 200 OK\r\na: b\r\n\r\nready\n"), &[]).await;
        assert_eq!((code, &*line), (yes.clone(), "ready\n"));
        let (code, line) = check(Some("HTTP/1.1 200 OK\r\n\r\nalive\n"), &["--live"]).await;
        assert_eq!((code, &*line), (yes, "alive\n"));
        let not_ready = "HTTP/1.0 503 Service Unavailable\r\n\r\nnot ready\n[-] pool tail: no backends yet\n";
        let (code, line) = check(Some(not_ready), &[]).await;
        assert_eq!((code, &*line), (no.clone(), "not ready; [-] pool tail: no backends yet\n"));
        for (answer, says) in [
            (Some("HTTP/1.0 404 Not Found\r\n\r\n"), "status 404: is it a spanring's admin port?"),
            (Some("SSH-2.0-OpenSSH\r\n"), "the answer is not HTTP"),
            (Some(""), "the answer is not HTTP"),
            (None, "no answer within 50ms"),
        ] {
            let (code, line) = check(answer, &["--timeout", "50ms"]).await;
            // A slow machine may run into the timeout before the response arrives.
            assert!(code == no && (line.contains(says) || line.contains("no answer")), "{answer:?}: {line}");
            assert_eq!(line.lines().count(), 1);
        }
    }

    #[test]
    fn the_address_is_taken_as_people_write_it_and_other_forms_say_what_to_write() {
        let admin = |text: &str| {
            let line = Line::try_parse_from(["healthcheck", "--admin", text]);
            line.map(|line| line.args.admin.to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(admin("http://localhost:8888/").ok(), Some("localhost:8888".to_owned()));
        for (text, advice) in [
            (":8888", "write localhost:8888"),
            ("http://localhost:8888/readyz", "write localhost:8888"),
            ("localhost", "write localhost:8888"),
        ] {
            assert!(admin(text).is_err_and(|said| said.contains(advice)), "{text}");
        }
    }

    #[tokio::test]
    async fn the_error_for_a_missing_proxy_names_the_address() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let mut out = Vec::new();
        let code = run(Line::parse_from(["healthcheck", "--admin", &address]).args, &mut out).await.unwrap();
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::FAILURE));
        assert!(String::from_utf8(out).unwrap().starts_with(&format!("http://{address}/readyz: ")));
    }
}
