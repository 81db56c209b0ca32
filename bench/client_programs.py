"""The programs whose requests `bench.record_clients` records: how each is run, and what shows that it is there.

Commands of Debian's packages are looked for on the path. Python programs run with the workshop's own interpreter,
Node.js ones with its `node_modules` (see `bench.record_clients`). `@URL@` stands for the address, `@HOST@`, `@PORT@`
and `@PATH@` for its parts, `@FOLDER@` for an empty folder that is thrown away.
"""

from __future__ import annotations

from dataclasses import dataclass, field

PYTHON, NODE = "python", "node"


@dataclass(frozen=True)
class Program:
    """One way of running one client. `command[0]` is looked for on the path, or is PYTHON or NODE."""

    name: str
    command: tuple[str, ...]
    module: str = ""
    """Of Python or Node.js, that has to be installed for it."""
    is_browser: bool = False
    """It loads a page with all that belongs to it: each way of fetching is a configuration of its own."""
    given: bytes = b""
    """For its standard input."""
    files: dict[str, str] = field(default_factory=dict)
    """Of its folder, by name."""


def python(name: str, module: str, code: str) -> Program:
    return Program(name, (PYTHON, "-c", code), module)


def node(name: str, module: str, code: str) -> Program:
    return Program(name, (NODE, "--input-type=module", "-e", code), module)


def source(name: str, command: tuple[str, ...], file: str, text: str) -> Program:
    return Program(name, command, files={file: text})


CHROMIUM_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking",
    "--disable-sync", "--disable-component-update", "--no-first-run", "--user-data-dir=@FOLDER@/profile",
    "--virtual-time-budget=4000",
)  # fmt: skip

FIREFOX_SETTINGS = """
user_pref("app.normandy.enabled", false);
user_pref("browser.safebrowsing.malware.enabled", false);
user_pref("browser.safebrowsing.phishing.enabled", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("network.captive-portal-service.enabled", false);
user_pref("network.connectivity-service.enabled", false);
user_pref("services.settings.server", "http://127.0.0.1:1");
user_pref("toolkit.telemetry.enabled", false);
"""

COMMAND_LINE = (
    Program("curl", ("curl", "-s", "@URL@")),
    Program("curl --compressed", ("curl", "-s", "--compressed", "@URL@")),
    Program("curl --http2", ("curl", "-s", "--http2", "@URL@")),
    Program("curl -L -A -e -H", ("curl", "-sL", "-A", "Mozilla/5.0 (compatible; fetcher/1.0)", "-e", "@URL@", "-H",
                                "Accept: application/json", "-H", "Accept-Language: en", "@URL@")),
    Program("curl --http1.0", ("curl", "-s", "--http1.0", "@URL@")),
    Program("wget", ("wget", "-q", "-O", "/dev/null", "@URL@")),
    Program("wget2", ("wget2", "-q", "-O", "/dev/null", "@URL@")),
    Program("aria2", ("aria2c", "-q", "-d", "@FOLDER@", "@URL@")),
    Program("axel", ("axel", "-q", "-n", "1", "-o", "@FOLDER@/file", "@URL@")),
    Program("lftp", ("lftp", "-c", "set net:max-retries 1; cat @URL@")),
    Program("HTTPie", (PYTHON, "-m", "httpie", "--ignore-stdin", "GET", "@URL@"), "httpie"),
    Program("GET (LWP)", ("GET", "@URL@")),
    Program("w3m", ("w3m", "-dump", "@URL@")),
    Program("lynx", ("lynx", "-dump", "@URL@")),
    Program("links", ("links", "-dump", "@URL@")),
    Program("elinks", ("elinks", "-dump", "1", "@URL@")),
    Program("ffmpeg", ("ffmpeg", "-v", "quiet", "-i", "@URL@", "-f", "null", "-")),
    Program("git", ("git", "ls-remote", "@URL@")),
    Program("apt", ("/usr/lib/apt/methods/http",), given=b"600 URI Acquire\nURI: @URL@\nFilename: @FOLDER@/file\n\n"),
    Program("pip", (PYTHON, "-m", "pip", "--retries", "0", "--isolated", "download", "--no-deps", "--no-cache-dir",
                    "-d", "@FOLDER@", "@URL@"), "pip"),
    Program("npm", ("npm", "view", "something", "--registry", "@URL@", "--cache", "@FOLDER@", "--fetch-retries", "0")),
    Program("socat, by hand", ("socat", "-t", "1", "STDIO", "TCP:@HOST@:@PORT@"),
            given=b"GET @PATH@ HTTP/1.1\r\nHost: @HOST@:@PORT@\r\n\r\n"),
    Program("monitoring-plugins check_http", ("/usr/lib/nagios/plugins/check_http", "-I", "@HOST@", "-p", "@PORT@",
                                              "-u", "@PATH@")),
)  # fmt: skip

LOAD = (
    Program("ab -k", ("ab", "-q", "-k", "-n", "1", "@URL@")),
    Program("ab", ("ab", "-q", "-n", "1", "@URL@")),
    Program("wrk", ("wrk", "-t", "1", "-c", "1", "-d", "1", "@URL@")),
    Program("h2load --h1", ("h2load", "--h1", "-n", "1", "-c", "1", "@URL@")),
    Program("httperf", ("httperf", "--hog", "--server", "@HOST@", "--port", "@PORT@", "--uri", "@PATH@",
                        "--num-conns", "1")),
    Program("siege", ("siege", "-q", "-c", "1", "-r", "1", "@URL@")),
    Program("hey", ("hey", "-n", "1", "-c", "1", "@URL@")),
    Program("autocannon", (NODE, "node_modules/autocannon/autocannon.js", "-a", "1", "-c", "1", "@URL@"), "autocannon"),
    python("Locust, FastHttpUser", "geventhttpclient", """
from geventhttpclient import HTTPClient
client = HTTPClient.from_url("@URL@")
client.get("@PATH@").read()
client.close()
"""),
)  # fmt: skip

PYTHON_LIBRARIES = (
    python("urllib.request", "", "import urllib.request; urllib.request.urlopen('@URL@').read()"),
    python("http.client", "", "import http.client; c = http.client.HTTPConnection('@HOST@', @PORT@); "
           "c.request('GET', '@PATH@'); c.getresponse().read()"),
    python("urllib3", "urllib3", "import urllib3; urllib3.PoolManager().request('GET', '@URL@')"),
    python("requests", "requests", "import requests; requests.get('@URL@')"),
    python("requests, JSON", "requests",
           "import requests; requests.get('@URL@', headers={'Accept': 'application/json'})"),
    python("httpx", "httpx", "import httpx; httpx.get('@URL@')"),
    python("niquests", "niquests", "import niquests; niquests.get('@URL@')"),
    python("aiohttp", "aiohttp", """
import aiohttp, asyncio
async def main():
    async with aiohttp.ClientSession() as session, session.get("@URL@") as answer:
        await answer.read()
asyncio.run(main())
"""),
    python("pycurl", "pycurl", "import pycurl; c = pycurl.Curl(); c.setopt(c.URL, '@URL@'); "
           "c.setopt(c.WRITEFUNCTION, len); c.perform()"),
    python("httplib2", "httplib2", "import httplib2; httplib2.Http().request('@URL@')"),
    python("Tornado", "tornado", "from tornado.httpclient import HTTPClient; HTTPClient().fetch('@URL@')"),
    python("Scrapy", "scrapy", """
import scrapy
from scrapy.crawler import CrawlerProcess
class Spider(scrapy.Spider):
    name = "one"
    start_urls = ["@URL@"]
    def parse(self, response):
        pass
process = CrawlerProcess({"LOG_ENABLED": False, "TELNETCONSOLE_ENABLED": False})
process.crawl(Spider)
process.start()
"""),
)  # fmt: skip

NODE_LIBRARIES = (
    node("Node.js fetch", "", "await (await fetch('@URL@')).text()"),
    node("Node.js http", "", "import http from 'node:http'; http.get('@URL@', a => a.resume())"),
    node("Node.js http, keep-alive agent", "", "import http from 'node:http'; "
         "const agent = new http.Agent({keepAlive: true}); http.get('@URL@', {agent}, a => a.resume().on('end', () => "
         "agent.destroy()))"),
    node("undici", "undici",
         "import {request} from 'undici'; await (await request('@URL@')).body.text(); process.exit()"),
    node("axios", "axios", "import axios from 'axios'; await axios.get('@URL@')"),
    node("got", "got", "import got from 'got'; await got('@URL@', {retry: {limit: 0}})"),
    node("node-fetch", "node-fetch", "import fetch from 'node-fetch'; await (await fetch('@URL@')).text()"),
    node("superagent", "superagent", "import agent from 'superagent'; await agent.get('@URL@')"),
    node("needle", "needle", "import needle from 'needle'; await needle('get', '@URL@')"),
)  # fmt: skip

OTHER_LANGUAGES = (
    source("Go net/http", ("go", "run", "@FOLDER@/main.go", "@URL@"), "main.go", """package main
import ("io"; "net/http"; "os")
func main() {
    answer, err := http.Get(os.Args[1])
    if err == nil { io.Copy(io.Discard, answer.Body) }
}
"""),
    source("Java HttpClient", ("java", "@FOLDER@/Main.java", "@URL@"), "Main.java", """
import java.net.URI;
import java.net.http.*;
class Main {
    public static void main(String[] arguments) throws Exception {
        HttpClient.newHttpClient().send(HttpRequest.newBuilder(URI.create(arguments[0])).build(),
                                        HttpResponse.BodyHandlers.ofString());
    }
}
"""),
    source("Java HttpClient, HTTP/1.1", ("java", "@FOLDER@/Main.java", "@URL@"), "Main.java", """
import java.net.URI;
import java.net.http.*;
class Main {
    public static void main(String[] arguments) throws Exception {
        HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).build().send(
            HttpRequest.newBuilder(URI.create(arguments[0])).build(), HttpResponse.BodyHandlers.ofString());
    }
}
"""),
    source("Java HttpURLConnection", ("java", "@FOLDER@/Main.java", "@URL@"), "Main.java", """
import java.net.URI;
class Main {
    public static void main(String[] arguments) throws Exception {
        URI.create(arguments[0]).toURL().openStream().readAllBytes();
    }
}
"""),
    Program("Perl LWP::UserAgent",
            ("perl", "-MLWP::UserAgent", "-e", "LWP::UserAgent->new(keep_alive=>1)->get('@URL@')")),
    Program("Perl HTTP::Tiny", ("perl", "-MHTTP::Tiny", "-e", "HTTP::Tiny->new->get('@URL@')")),
    Program("Perl Mojo::UserAgent", ("perl", "-MMojo::UserAgent", "-e", "Mojo::UserAgent->new->get('@URL@')")),
    Program("Ruby Net::HTTP", ("ruby", "-rnet/http", "-e", "Net::HTTP.get(URI('@URL@'))")),
    Program("Ruby Faraday", ("ruby", "-rfaraday", "-e", "Faraday.get('@URL@')")),
    Program("Ruby HTTParty", ("ruby", "-rhttparty", "-e", "HTTParty.get('@URL@')")),
    Program("Ruby excon", ("ruby", "-rexcon", "-e", "Excon.get('@URL@')")),
    Program("PHP streams", ("php", "-r", "file_get_contents('@URL@');")),
    Program("PHP curl", ("php", "-r", "$c = curl_init('@URL@'); curl_setopt($c, CURLOPT_RETURNTRANSFER, true); "
                        "curl_exec($c);")),
    Program("PHP Guzzle", ("php", "-r", "require '/usr/share/php/GuzzleHttp/autoload.php'; "
                          "(new GuzzleHttp\\Client())->get('@URL@');")),
)  # fmt: skip

BROWSERS = (
    Program("Chromium", ("chromium", *CHROMIUM_FLAGS, "--dump-dom", "@URL@"), is_browser=True),
    Program("Firefox", ("firefox-esr", "--headless", "--profile", "@FOLDER@", "--screenshot", "@FOLDER@/page.png",
                        "@URL@"),
            is_browser=True, files={"user.js": FIREFOX_SETTINGS}),
)  # fmt: skip

PROGRAMS = (*COMMAND_LINE, *LOAD, *PYTHON_LIBRARIES, *NODE_LIBRARIES, *OTHER_LANGUAGES, *BROWSERS)
