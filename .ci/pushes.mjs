// Pushes as clients see them that the project did not write: Node's ws, and a page in Chromium. An application that echoes 10,000
// messages, compressed and not, is behind the gate; meanwhile a backend pushes 1,000 messages to the same client by the API. Nothing
// is lost, doubled, split or out of order, with either engine and in both modes.
//
//   apt-get install chromium && npm install ws@8.23.0 playwright-core@1.65.1
//   PORTCULLIS=.../portcullis node .../pushes.mjs
//
// Both packages are taken from the working directory, so that the checkout needs no node_modules. CHROMIUM is the browser,
// /usr/bin/chromium if unset. One line of TAP for each check; the exit code is 1 if one failed, 2 without a program.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createRequire } from 'node:module';

const echoes = 10_000;
const pushes = 1_000;
const inFlight = 100; // messages that are sent and not echoed yet
const checkTime = 60_000; // ms for one check

if (!process.env.PORTCULLIS) {
  console.error('PORTCULLIS is not set; want the path of the program');
  process.exit(2);
}

const require = createRequire(`${process.cwd()}/`);
const WebSocket = require('ws');
const { chromium } = require('playwright-core');

const token = 'a token of sixteen or more'.replaceAll(' ', '-');

// Every third message is long enough to be compressed and to come in several reads.
const text = (i) => `echo ${i}${' again and again'.repeat(i % 3 === 0 ? i % 400 : 0)}`;

// startApplication runs a backend that echoes.
async function startApplication(perMessageDeflate) {
  const server = new WebSocket.Server({ host: '127.0.0.1', port: 0, perMessageDeflate: perMessageDeflate && { threshold: 100 } });
  server.on('connection', (socket) => socket.on('message', (data, binary) => socket.send(data, { binary })));
  await once(server, 'listening');
  return server;
}

// startGate runs the program in front of an application.
async function startGate(application, settings) {
  const program = spawn(process.env.PORTCULLIS, {
    env: {
      LISTEN_ADDR: '127.0.0.1:0', ADMIN_ADDR: '127.0.0.1:0', ADMIN_TOKEN: token, AUTH_MODE: 'none', PUSH_QUEUE: '1MiB',
      UPSTREAM_URL: `ws://127.0.0.1:${application.address().port}`, ...settings,
    },
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  const ended = once(program, 'close');
  const kill = () => program.kill('SIGKILL');
  process.once('exit', kill);
  let log = '';
  const listens = new Promise((resolve) => {
    program.stderr.setEncoding('utf8').on('data', (chunk) => {
      log += chunk;
      const at = /"msg":"listening".*"addr":"([^"]*)".*"admin":"([^"]*)"/.exec(log);
      if (at) resolve({ front: `ws://${at[1]}/`, api: `http://${at[2]}/api` });
    });
  });
  const addresses = await Promise.race([listens, ended.then(([code]) => { throw new Error(`the gate ended with ${code}:\n${log}`); })]);
  return {
    ...addresses,
    async stop() {
      program.kill('SIGTERM');
      const [code] = await ended;
      process.off('exit', kill);
      assert.equal(code, 0, `the gate ended with ${code}:\n${log}`);
    },
  };
}

// push sends all pushes to every session, one after the other.
async function push(api) {
  for (let i = 0; i < pushes; i++) {
    const response = await fetch(`${api}/messages?all=true`, {
      method: 'POST', body: `push ${i}`, headers: { Authorization: `Bearer ${token}`, 'Content-Type': 'text/plain' },
    });
    const answer = await response.text();
    assert.ok(response.status === 200 && JSON.parse(answer).reached === 1, `push ${i}: ${response.status} ${answer}`);
  }
}

// talk is the client's side, in Node or in a page: it returns what is wrong, or an empty text. It begins when the session is open.
function talk(socket, text, { echoes, pushes, inFlight }) {
  return new Promise((resolve) => {
    let sent = 0;
    let echoed = 0;
    let pushed = 0;
    const send = () => {
      while (sent < echoes && sent - echoed < inFlight) socket.send(text(sent++));
    };
    socket.onmessage = ({ data }) => {
      if (data === `push ${pushed}`) pushed++;
      else if (data === text(echoed)) echoed++;
      else resolve(`after ${echoed} echoes and ${pushed} pushes it got ${JSON.stringify(data.slice(0, 80))}, ${data.length} long`);
      if (echoed === echoes && pushed === pushes) resolve('');
      send();
    };
    socket.onclose = ({ code, reason }) => resolve(`closed with ${code} ${reason} after ${echoed} echoes and ${pushed} pushes`);
    send();
  });
}

const numbers = { echoes, pushes, inFlight };

async function byNode({ front, api }, perMessageDeflate) {
  const socket = new WebSocket(front, { perMessageDeflate });
  await once(socket, 'open');
  const [wrong] = await Promise.all([talk(socket, text, numbers), push(api)]);
  const { extensions } = socket;
  socket.onclose = null;
  socket.close(1000);
  await once(socket, 'close');
  assert.equal(wrong, '');
  return extensions;
}

async function byChromium({ front, api }) {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });
  try {
    const page = await browser.newPage();
    await page.evaluate(`new Promise((resolve, reject) => {
      const socket = globalThis.socket = new WebSocket(${JSON.stringify(front)});
      socket.onerror = reject;
      socket.onopen = () => {
        globalThis.wrong = (${talk})(socket, ${text}, ${JSON.stringify(numbers)});
        resolve();
      };
    })`);
    const [wrong] = await Promise.all([page.evaluate(() => globalThis.wrong), push(api)]);
    assert.equal(wrong, '');
    return await page.evaluate(() => globalThis.socket.extensions);
  } finally {
    await browser.close();
  }
}

const relays = {
  loop: { RELAY_ENGINE: 'loop' },
  stream: { RELAY_ENGINE: 'stream' },
  terminate: { RELAY_MODE: 'terminate' },
};

let number = 0;
let failed = false;

async function check(name, settings, perMessageDeflate, client, compressed) {
  const application = await startApplication(perMessageDeflate);
  const gate = await startGate(application, settings);
  const timer = setTimeout(() => { console.log(`not ok ${number + 1} - ${name}: it hangs`); process.exit(1); }, checkTime);
  try {
    const extensions = await client(gate, perMessageDeflate);
    assert.equal(extensions.includes('permessage-deflate'), compressed, `extensions: "${extensions}"`);
    await gate.stop();
    console.log(`ok ${++number} - ${name}`);
  } catch (error) {
    failed = true;
    console.log(`not ok ${++number} - ${name}: ${error.message}`);
  } finally {
    clearTimeout(timer);
    application.close();
  }
}

for (const [relay, settings] of Object.entries(relays)) {
  for (const deflate of [false, true]) {
    const compressed = deflate && relay !== 'terminate'; // which takes messages apart
    const how = compressed ? 'compressed' : 'not compressed';
    await check(`Node's ws, ${relay}, ${how}`, settings, deflate, byNode, compressed);
    await check(`Chromium, ${relay}, ${how}`, settings, deflate, byChromium, compressed);
  }
}
console.log(`1..${number}`);
process.exit(failed ? 1 : 0);
