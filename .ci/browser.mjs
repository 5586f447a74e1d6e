// Portcullis as a web page sees it: sessions opened from a page in Chromium in every way that a script has of showing a
// token, and what the script learns when the token ends or is refused.
//
//   apt-get install chromium && npm install playwright-core@1.65.1
//   PORTCULLIS=.../portcullis node .../browser.mjs
//
// playwright-core is taken from the working directory, so that the checkout needs no node_modules. CHROMIUM is the browser,
// /usr/bin/chromium if unset. Every check starts a gate of its own and signs its own tokens. One line of TAP for each; the
// exit code is 1 if one failed, 2 without a program.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHash, createHmac, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { setTimeout as delay } from 'node:timers/promises';

const checkTime = 20_000; // ms for one check; the longest waits for two tokens to end, one after the other
const wholeTime = 180_000; // ms for all
const exitTime = 5_000; // ms for a gate to drain
const short = 5; // a token's life in seconds: four at least, for exp is a whole number
const slack = 1_500; // ms from a token's end to the Close: within a second, and what a busy machine adds

if (!process.env.PORTCULLIS) {
  console.error('PORTCULLIS is not set; want the path of the program');
  process.exit(2);
}

const { chromium } = createRequire(`${process.cwd()}/`)('playwright-core');

// The page. A browser's events are what this test is about, so a Session queues them and judges nothing.
const html = `<!doctype html>
<meta charset="utf-8">
<title>A page with a WebSocket</title>
<script>
class Session {
  constructor(url, protocols) {
    this.socket = new WebSocket(url, protocols);
    this.events = new ReadableStream({ start: (queue) => {
      this.socket.onopen = () => queue.enqueue({ open: this.socket.protocol });
      this.socket.onmessage = ({ data }) => queue.enqueue({ message: data });
      this.socket.onclose = ({ code, reason }) => queue.enqueue({ close: code, reason, at: Date.now() });
    } }).getReader();
  }
  async next() { return (await this.events.read()).value; }
  send(text) { this.socket.send(text); }
}
</script>
`;

const answer = (text) => `MENSAGEM: Você enviou "${text}"`;

// --- Tokens

const secret = randomBytes(32).toString('hex');
const signed = []; // every token so far; none may be in a log

// sign returns a JWT (RFC 7519) of HS256 and when it ends, in ms since 1970.
function sign({ lifetime = 60, subject = 'ana', key = secret } = {}) {
  const exp = Math.floor(Date.now() / 1000) + lifetime;
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const input = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ sub: subject, exp })}`;
  const text = `${input}.${createHmac('sha256', key).update(input).digest('base64url')}`;
  signed.push(text);
  return { text, end: exp * 1000 };
}

const forged = () => sign({ key: 'somebody else' }).text;

// --- What runs beside the browser

// serve answers every request with the page, until the end of the test. localhost is what a page and a gate share: cookies
// and sites know no ports (RFC 6265 section 8.5), origins do.
async function serve() {
  const server = createServer((_, response) => response.setHeader('Content-Type', 'text/html').end(html));
  return `http://localhost:${await port(server)}`;
}

async function port(server) {
  server.listen(0, '127.0.0.1').unref();
  await once(server, 'listening');
  return server.address().port;
}

// startGate runs the program with its bundled backend, for the pages of one origin. Its environment is these settings alone.
async function startGate(cleanup, settings = {}) {
  const program = spawn(process.env.PORTCULLIS, {
    env: {
      LISTEN_ADDR: '127.0.0.1:0',
      ADMIN_ADDR: '',
      DRAIN_TIMEOUT: '2s',
      LOG_LEVEL: 'debug',
      AUTH_MODE: 'jwt',
      AUTH_JWT_SECRET: secret,
      ORIGINS: home,
      ...settings,
    },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const ended = once(program, 'close');
  let log = '';
  const listens = new Promise((resolve) => {
    program.stderr.setEncoding('utf8').on('data', (text) => {
      log += text;
      const addr = /"msg":"listening".*"addr":"127\.0\.0\.1:(\d+)"/.exec(log);
      if (addr) resolve(`localhost:${addr[1]}`);
    });
  });
  const kill = () => program.kill('SIGKILL');
  process.once('exit', kill);
  cleanup.push(async () => {
    program.kill('SIGTERM');
    const timer = setTimeout(kill, exitTime);
    const [code] = await ended;
    clearTimeout(timer);
    process.off('exit', kill);
    assert.equal(code, 0, `the gate ended with ${code}:\n${log}`);
    assert.ok(!signed.some((token) => log.includes(token)), 'a token is in the log');
  });
  return Promise.race([listens, ended.then(([code]) => { throw new Error(`the gate ended with ${code}:\n${log}`); })]);
}

// startChooser runs a backend that answers as the bundled one does, but chooses the first subprotocol that it is offered. It
// returns its URL, and the requests that it gets.
async function startChooser(cleanup) {
  const server = createServer();
  const requests = [];
  server.on('upgrade', (request, socket) => {
    requests.push(request);
    const accept = createHash('sha1').update(`${request.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`);
    const [protocol] = (request.headers['sec-websocket-protocol'] ?? '').split(',');
    socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
      + `Sec-WebSocket-Accept: ${accept.digest('base64')}\r\nSec-WebSocket-Protocol: ${protocol}\r\n\r\n`);
    let bytes = Buffer.alloc(0);
    socket.on('error', () => {}).on('data', (chunk) => {
      bytes = Buffer.concat([bytes, chunk]);
      for (let size; bytes.length >= (size = 6 + (bytes[1] & 127)); bytes = bytes.subarray(size)) { // short ones alone
        const text = Buffer.from(bytes.subarray(6, size).map((b, i) => b ^ bytes[2 + i % 4]));
        const back = Buffer.from(answer(text));
        if ((bytes[0] & 15) === 8) socket.end(Buffer.of(0x88, 0));
        else socket.write(Buffer.concat([Buffer.of(0x81, back.length), back]));
      }
    });
  });
  cleanup.push(() => server.close());
  return { url: `ws://127.0.0.1:${await port(server)}`, requests };
}

// --- What a page does

// open has the page call new WebSocket. What comes of it is in the session's events.
async function open(page, url, protocols = []) {
  const session = await page.evaluateHandle(([url, protocols]) => new Session(url, protocols), [url, protocols]);
  return {
    next: () => session.evaluate((s) => s.next()),
    send: (text) => session.evaluate((s, text) => s.send(text), text),
  };
}

async function opened(session, protocol = '') {
  assert.deepEqual(await session.next(), { open: protocol });
}

async function echoes(session, text = 'Olá') {
  await session.send(text);
  assert.deepEqual(await session.next(), { message: answer(text) });
}

async function closed(session, code, reason) {
  const event = await session.next();
  assert.equal(event.close, code, `closed with ${JSON.stringify(event)}`);
  assert.match(event.reason, reason);
  return event.at;
}

// expires waits for the end of the session's token.
async function expires(session, end) {
  const late = await closed(session, 3000, /^token expired$/) - end;
  assert.ok(late >= 0 && late < slack, `closed ${late} ms after the token's end`);
}

// fails has the handshake fail, of which a script learns nothing.
async function fails(session) {
  await closed(session, 1006, /^$/);
}

// post has the page call fetch, with headers that need a preflight (Fetch section 4.8). It fails where the browser keeps the
// answer from the script.
function post(page, url, headers) {
  return page.evaluate(async ([url, headers]) => {
    const response = await fetch(url, { method: 'POST', headers });
    return { status: response.status, body: await response.text() };
  }, [url, headers]);
}

// setCookie has the browser keep a token as a careful login would. Without a port it is the gate's too.
async function setCookie(page, token) {
  await page.context().addCookies([{ name: 'session', value: token, url: home, httpOnly: true, sameSite: 'Strict' }]);
}

const bearer = (token) => ({ Authorization: `Bearer ${token}` });

async function ticket(page, gate, token) {
  const { status, body } = await post(page, `http://${gate}/.portcullis/ticket`, bearer(token));
  assert.equal(status, 200, body);
  return JSON.parse(body).ticket;
}

const checks = {
  'a session opened by a token in the query': async ({ page, cleanup }) => {
    const gate = await startGate(cleanup);
    const session = await open(page, `ws://${gate}/?token=${sign().text}`);
    await opened(session);
    await echoes(session);
  },

  'a session opened by the subprotocols bearer and token': async ({ page, cleanup }) => {
    const gate = await startGate(cleanup, { AUTH_TOKEN_FROM: 'protocol:bearer' });
    const session = await open(page, `ws://${gate}/`, ['bearer', sign().text]);
    await opened(session, 'bearer');
    await echoes(session);
  },

  'a session opened by a subprotocol as Kubernetes has it, beside that of the application': async ({ page, cleanup }) => {
    const { url, requests } = await startChooser(cleanup);
    const place = 'base64url.bearer.authorization.k8s.io';
    const gate = await startGate(cleanup, { AUTH_TOKEN_FROM: `protocol:${place}`, UPSTREAM_URL: url });
    const token = Buffer.from(sign().text).toString('base64url');
    signed.push(token);
    const session = await open(page, `ws://${gate}/`, [`${place}.${token}`, 'chat']);
    await opened(session, 'chat');
    await echoes(session);
    assert.deepEqual(requests.map(({ headers }) => headers['sec-websocket-protocol']), ['chat'], 'offered to the backend');
  },

  'a session opened by a cookie that script cannot read': async ({ page, cleanup }) => {
    const gate = await startGate(cleanup, { AUTH_TOKEN_FROM: 'cookie:session' });
    await setCookie(page, sign().text);
    assert.equal(await page.evaluate(() => document.cookie), '');
    const session = await open(page, `ws://${gate}/`);
    await opened(session);
    await echoes(session);
  },

  'a page of another origin cannot use that cookie': async ({ page, cleanup }) => {
    await setCookie(page, sign().text);
    await page.goto(other);
    for (const REFUSE_WITH_CLOSE of ['false', 'true']) {
      const gate = await startGate(cleanup, { AUTH_TOKEN_FROM: 'cookie:session', REFUSE_WITH_CLOSE });
      await fails(await open(page, `ws://${gate}/`));
    }
    // It was for its origin alone: the browser did send the cookie.
    const gate = await startGate(cleanup, { AUTH_TOKEN_FROM: 'cookie:session', ORIGINS: other });
    await opened(await open(page, `ws://${gate}/`));
  },

  'a session opened by a ticket, which opens no other': async ({ page, cleanup }) => {
    const gate = await startGate(cleanup, { TICKETS: 'true', REFUSE_WITH_CLOSE: 'true' });
    const url = `ws://${gate}/?ticket=${await ticket(page, gate, sign().text)}`;
    const session = await open(page, url);
    await opened(session);
    await echoes(session);
    const second = await open(page, url);
    await opened(second);
    await closed(second, 3000, /./);
    await echoes(session);
  },

  'a page is told by fetch that its token gets no ticket': async ({ page, cleanup }) => {
    const gate = await startGate(cleanup, { TICKETS: 'true' });
    assert.equal((await post(page, `http://${gate}/.portcullis/ticket`, bearer(forged()))).status, 401);
  },

  'a page of another origin gets no ticket for the same token': async ({ page, cleanup }) => {
    const gate = await startGate(cleanup, { TICKETS: 'true' });
    const token = sign().text;
    await ticket(page, gate, token);
    await page.goto(other);
    await assert.rejects(post(page, `http://${gate}/.portcullis/ticket`, bearer(token)), /Failed to fetch/);
  },

  'a session opened by its first message': async ({ page, cleanup }) => {
    const gate = await startGate(cleanup, { AUTH_FIRST_MESSAGE: 'true' });
    const session = await open(page, `ws://${gate}/`);
    await opened(session);
    await session.send(sign().text);
    await echoes(session);
  },

  'a session opened by its first message in JSON, with a subprotocol': async ({ page, cleanup }) => {
    const { url, requests } = await startChooser(cleanup);
    const gate = await startGate(cleanup, { AUTH_FIRST_MESSAGE: 'true', AUTH_FIRST_MESSAGE_FORMAT: '/auth/token', UPSTREAM_URL: url });
    const session = await open(page, `ws://${gate}/`, ['chat', 'other']);
    await opened(session, 'chat');
    assert.equal(requests.length, 0, 'the backend is asked before there is a token');
    await session.send(JSON.stringify({ auth: { token: sign().text } }));
    await echoes(session);
    assert.deepEqual(requests.map(({ headers }) => headers['sec-websocket-protocol']), ['chat'], 'offered to the backend');
  },

  'a wrong token in the first message': async ({ page, cleanup }) => {
    const gate = await startGate(cleanup, { AUTH_FIRST_MESSAGE: 'true' });
    const session = await open(page, `ws://${gate}/`);
    await opened(session);
    await session.send(forged());
    await closed(session, 3000, /./);
  },

  'sessions end with their token, however it was shown': async ({ page, cleanup }) => {
    const gate = await startGate(cleanup, {
      AUTH_TOKEN_FROM: 'query:token,protocol:bearer,cookie:session', TICKETS: 'true', AUTH_FIRST_MESSAGE: 'true',
    });
    const { text, end } = sign({ lifetime: short });
    const message = await open(page, `ws://${gate}/`);
    await opened(message);
    await message.send(text);
    const url = `ws://${gate}/?ticket=${await ticket(page, gate, text)}`;
    const others = [await open(page, url), await open(page, `ws://${gate}/?token=${text}`), await open(page, `ws://${gate}/`, ['bearer', text])];
    await setCookie(page, text); // last: with it there is no socket without a token
    others.push(await open(page, `ws://${gate}/`));
    for (const [i, protocol] of ['', '', 'bearer', ''].entries()) await opened(others[i], protocol);
    for (const session of [message, ...others]) await expires(session, end);
  },

  'a session renewed by fetch outlives its first token, and ends with the second': async ({ page, cleanup }) => {
    const gate = await startGate(cleanup, { RENEWAL: 'true', SESSION_HELLO: 'true' });
    const first = sign({ lifetime: short });
    const session = await open(page, `ws://${gate}/?token=${first.text}`);
    await opened(session);
    const hello = JSON.parse((await session.next()).message).portcullis;
    assert.equal(Date.parse(hello.expires), first.end);

    const renew = (token) => post(page, `http://${gate}/.portcullis/session`, { ...bearer(token), 'Portcullis-Session': hello.session });
    assert.equal((await renew(sign({ subject: 'rui' }).text)).status, 401, "another user's token");
    const second = sign({ lifetime: 2 * short });
    const { status, body } = await renew(second.text);
    assert.equal(status, 200, body);
    assert.equal(Date.parse(JSON.parse(body).expires), second.end);

    await delay(first.end + 500 - Date.now());
    await echoes(session);
    await expires(session, second.end);
  },

  'without REFUSE_WITH_CLOSE a script cannot tell why it is refused': async ({ page, cleanup }) => {
    const gate = await startGate(cleanup);
    await fails(await open(page, `ws://${gate}/?token=${forged()}`));
    await fails(await open(page, `ws://${gate}/`));
  },

  'with REFUSE_WITH_CLOSE it can': async ({ page, cleanup }) => {
    const gate = await startGate(cleanup, { AUTH_TOKEN_FROM: 'query:token,protocol:bearer', REFUSE_WITH_CLOSE: 'true' });
    for (const [query, protocols] of [['', []], [`?token=${forged()}`, []], ['', ['bearer', forged()]]]) {
      const session = await open(page, `ws://${gate}/${query}`, protocols);
      await opened(session, protocols[0]);
      await closed(session, 3000, /./);
    }
  },

  'with REFUSE_WITH_CLOSE a script learns when to come back': async ({ page, cleanup }) => {
    const gate = await startGate(cleanup, { RATE_UPGRADES_PER_IP: '1/h', REFUSE_WITH_CLOSE: 'true' });
    const url = `ws://${gate}/?token=${sign().text}`;
    await opened(await open(page, url));
    const session = await open(page, url);
    await opened(session);
    await closed(session, 1013, /retry in \d+ s$/);
  },
};

// --- The run

// run is the error of one check, if any, in checkTime at most. It leaves nothing running.
async function run(check) {
  const context = await browser.newContext();
  const cleanup = []; // what a check has started, ended in the opposite order
  let error;
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${checkTime} ms`)), checkTime);
  });
  const body = async () => {
    const page = await context.newPage();
    await page.goto(home);
    await check({ page, cleanup });
  };
  try {
    await Promise.race([body(), late]);
  } catch (e) {
    error = e;
  }
  clearTimeout(timer);
  for (const end of [...cleanup, () => context.close()].reverse()) {
    try {
      await end();
    } catch (e) {
      error ??= e;
    }
  }
  return error;
}

setTimeout(() => {
  console.log(`Bail out! not done after ${wholeTime} ms`);
  process.exit(1);
}, wholeTime).unref();

const home = await serve(); // whose origin the gates allow
const other = await serve();
const browser = await chromium.launch({ // with a new profile, which goes with it
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--disable-gpu', '--disable-quic', '--disable-sync', '--no-proxy-server'],
});
console.log(`# Chromium ${browser.version()}`);
console.log(`1..${Object.keys(checks).length}`);
let number = 0;
let failed = 0;
for (const [name, check] of Object.entries(checks)) {
  const error = await run(check);
  number++;
  if (error) failed++;
  console.log(`${error ? 'not ok' : 'ok'} ${number} - ${name}`);
  if (error) console.log(`# ${String(error.message).replaceAll('\n', '\n# ')}`);
}
await browser.close();
process.exit(failed ? 1 : 0);
