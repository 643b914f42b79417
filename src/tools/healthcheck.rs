//! `spanring healthcheck`: one question to a running proxy's admin port, for containers without a shell.
//!
//! It speaks HTTP/1.0 by hand: the question has one line, and the answer is short.

use std::{io::Write, process::ExitCode, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::settings::{addresses::HostPort, values::GoDuration};

/// The longest answer that is read.
const LONGEST: u64 = 64 << 10;

/// Which proxy, and what.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Admin address of the proxy
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8888")]
    admin: HostPort,
    /// Ask whether the process answers (/livez), not whether it is ready (/readyz)
    #[arg(long)]
    live: bool,
    /// How long the answer may take
    #[arg(long, value_name = "TIME", default_value = "2s")]
    timeout: GoDuration,
}

/// Asks, writes one line, and ends with 0 for yes and 1 for everything else.
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

/// The status of a page, and what it says in one line.
async fn ask(admin: &HostPort, path: &str) -> Result<(u16, String), String> {
    let failed = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect((admin.host.as_str(), admin.port)).await.map_err(failed)?;
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

    /// The code and the line of a check whose proxy answers with these bytes, or does not answer at all.
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
            // A slow machine may not have had time for an answer either.
            assert!(code == no && (line.contains(says) || line.contains("no answer")), "{answer:?}: {line}");
            assert_eq!(line.lines().count(), 1);
        }
    }

    #[tokio::test]
    async fn nobody_there_is_no_and_says_where() {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap().to_string();
        let mut out = Vec::new();
        let code = run(Line::parse_from(["healthcheck", "--admin", &address]).args, &mut out).await.unwrap();
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::FAILURE));
        assert!(String::from_utf8(out).unwrap().starts_with(&format!("http://{address}/readyz: ")));
    }
}
