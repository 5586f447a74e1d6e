// Portcullis with its bundled backend, seen by a client that the project did not write: Node's ws.
//
//   npm install ws@8.23.0 && URL=ws://127.0.0.1:3000/ node .../ws-client.mjs
//
// With RELAY_MODE=terminate set MESSAGE_MAX_BYTES too: the answer to 1 MiB is longer than its default there.
// ws is taken from the working directory, so that the checkout needs no node_modules. One line of TAP for each check;
// the exit code is 1 if one failed, 2 without a URL.

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createRequire } from 'node:module';

const WebSocket = createRequire(`${process.cwd()}/`)('ws');

const checkTime = 10_000; // ms for one check
const wholeTime = 60_000; // ms for all

if (!process.env.URL) {
  console.error('URL is not set; want the WebSocket URL of the front listener, without a query');
  process.exit(2);
}

const answer = (text) => `MENSAGEM: Você enviou "${text}"`;

// url is the front's, with another query or path.
function url(query, path) {
  const u = new URL(process.env.URL);
  u.search = query;
  if (path) u.pathname = path;
  return u;
}

// event is what comes with the next such event; the end of the connection is an error to whoever waits for something else.
function event(socket, name) {
  const ways = [once(socket, name)];
  if (name !== 'close') {
    ways.push(once(socket, 'close').then(([code, reason]) => {
      throw new Error(`closed with ${code} "${reason}" while waiting for ${name}`);
    }));
  }
  const first = Promise.race(ways);
  first.catch(() => {}); // a check that has failed already waits no more
  return first;
}

// connect opens a session, which the check that asked for it need not end.
async function connect(sockets, options = {}) {
  const socket = new WebSocket(url('?token=token'), { perMessageDeflate: false, ...options });
  sockets.push(socket);
  await event(socket, 'open');
  return socket;
}

// refusal is the status, headers and body of a no; a yes is an error.
async function refusal(sockets, target) {
  const socket = new WebSocket(target);
  sockets.push(socket);
  const opened = once(socket, 'open').then(() => { throw new Error('connected'); });
  const [, response] = await Promise.race([once(socket, 'unexpected-response'), opened]);
  let body = '';
  for await (const chunk of response) body += chunk;
  return { status: response.statusCode, headers: response.headers, body };
}

async function echoes(socket, text) {
  const message = event(socket, 'message');
  socket.send(text);
  const [data, binary] = await message;
  assert.equal(binary, false, 'the answer to a text is binary');
  assert.ok(data.toString() === answer(text), `wrong answer of ${data.length} bytes: ${data.subarray(0, 60)}`);
}

async function closes(socket, code, reason) {
  const closed = event(socket, 'close');
  socket.close(code, reason);
  assert.equal((await closed)[0], code);
}

const checks = {
  'a message is answered and the session closes with 1000': async (sockets) => {
    const socket = await connect(sockets);
    await echoes(socket, 'Olá');
    await closes(socket, 1000);
  },

  'no subprotocol is chosen where none is offered': async (sockets) => {
    assert.equal((await connect(sockets)).protocol, '');
  },

  'permessage-deflate off': async (sockets) => {
    const socket = await connect(sockets, { perMessageDeflate: false });
    assert.equal(socket.extensions, '');
    await echoes(socket, 'Olá '.repeat(10_000));
    await closes(socket, 1000);
  },

  'permessage-deflate offered, whether taken or not': async (sockets) => {
    const socket = await connect(sockets, { perMessageDeflate: { threshold: 0 } });
    for (const text of ['Olá', 'Olá '.repeat(10_000), '', 'Olá']) await echoes(socket, text);
    await closes(socket, 1000);
  },

  'a text of 1 MiB': async (sockets) => {
    const socket = await connect(sockets);
    await echoes(socket, 'x'.repeat(1 << 20));
    await closes(socket, 1000);
  },

  'a binary message comes back as it went': async (sockets) => {
    const socket = await connect(sockets);
    const sent = Buffer.from(Array.from({ length: 70_000 }, (_, i) => i % 256));
    const message = event(socket, 'message');
    socket.send(sent);
    const [data, binary] = await message;
    assert.equal(binary, true);
    assert.ok(sent.equals(data), `other bytes: ${data.length} of ${sent.length}`);
  },

  'a text streamed in fragments, with a ping between two and characters cut in two': async (sockets) => {
    const socket = await connect(sockets);
    const text = 'aé'.repeat(100_000); // 3 bytes each, so that fragments of 4,096 bytes end within characters
    const bytes = Buffer.from(text);
    const [message, pong] = [event(socket, 'message'), event(socket, 'pong')];
    for (let at = 0; at < bytes.length; at += 4096) {
      const fin = at + 4096 >= bytes.length;
      socket.send(bytes.subarray(at, at + 4096), { binary: false, fin });
      if (at === 4096) socket.ping('between');
    }
    assert.equal((await pong)[0].toString(), 'between');
    const [data] = await message;
    assert.ok(data.toString() === answer(text), `wrong answer of ${data.length} bytes`);
    await closes(socket, 1000);
  },

  'messages sent in one go are answered in order': async (sockets) => {
    const socket = await connect(sockets);
    const got = [];
    const all = new Promise((resolve) => {
      socket.on('message', (data) => { if (got.push(data.toString()) === 100) resolve(); });
    });
    const sent = Array.from({ length: 100 }, (_, i) => `message ${i}`);
    for (const text of sent) socket.send(text);
    await all;
    assert.deepEqual(got, sent.map(answer));
  },

  'a ping is answered with its payload': async (sockets) => {
    const socket = await connect(sockets);
    for (const payload of ['', 'está aí?', 'x'.repeat(125)]) {
      const pong = event(socket, 'pong');
      socket.ping(payload);
      assert.equal((await pong)[0].toString(), payload);
    }
  },

  'an unasked pong disturbs nothing': async (sockets) => {
    const socket = await connect(sockets);
    socket.pong('unasked');
    await echoes(socket, 'Olá');
  },

  'a close with code 4001 and a reason is answered with that code': async (sockets) => {
    await closes(await connect(sockets), 4001, 'até logo');
  },

  'a close without a code is answered without one': async (sockets) => {
    const socket = await connect(sockets);
    const closed = event(socket, 'close');
    socket.close();
    assert.equal((await closed)[0], 1005);
  },

  'a wrong token is refused with 401': async (sockets) => unauthorized(await refusal(sockets, url('?token=rogers'))),

  'no token is refused with 401': async (sockets) => unauthorized(await refusal(sockets, url(''))),

  'another path is refused with 404': async (sockets) => {
    assert.equal((await refusal(sockets, url('?token=token', '/other'))).status, 404);
  },
};

function unauthorized({ status, headers, body }) {
  assert.equal(status, 401);
  assert.match(headers['www-authenticate'] ?? '', /^Bearer /);
  assert.match(body, /^[^\n]+\n?$/, 'the body is not one line');
  assert.ok(!body.includes('rogers'), 'the body shows the token');
}

// run is the error of one check, if any, in checkTime at most. It leaves no socket open.
async function run(check) {
  const sockets = [];
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not done after ${checkTime} ms`)), checkTime);
  });
  try {
    await Promise.race([check(sockets), late]);
  } catch (error) {
    return error;
  } finally {
    clearTimeout(timer);
    for (const socket of sockets) {
      socket.on('error', () => {}); // of a connection that is not there yet
      socket.terminate();
    }
  }
}

setTimeout(() => {
  console.log(`Bail out! not done after ${wholeTime} ms`);
  process.exit(1);
}, wholeTime).unref();

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
process.exit(failed ? 1 : 0);
