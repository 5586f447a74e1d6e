import assert from 'node:assert/strict';
import { createServer } from 'node:net';
import { once } from 'node:events';
import { test } from 'node:test';
import WebSocket from 'ws';
import Portcullis from '../dist/index.js';
import { answer, echoes, next, secret, sign, startGate } from './gate.mjs';

const options = (more = {}) => ({ WebSocket, backoff: { min: 50, max: 200 }, ...more });

function connect(t, url, more) {
  const socket = new Portcullis(url, options(more));
  t.after(() => socket.close());
  return socket;
}

test('a right token, a wrong one and none', async (t) => {
  const gate = await startGate(t, { REFUSE_WITH_CLOSE: 'true' });
  const right = connect(t, gate.url, { token: () => 'token' });
  await next(right, 'open');
  await echoes(right, 'hello');
  let asked = 0;
  const wrong = connect(t, gate.url, { token: () => { asked += 1; return 'another'; } });
  const refused = await next(wrong, 'close');
  assert.deepEqual([refused.code, refused.reason, asked], [3000, 'the token is not accepted', 3], 'a fresh token each time, and then no more');
  const none = await next(connect(t, gate.url), 'close');
  assert.deepEqual([none.code, none.reason], [3000, 'a token is required']);
});

for (const [name, settings, more] of [
  ['as a subprotocol', {}, {}],
  ['as a subprotocol, beside the application\'s', {}, { protocols: ['chat', 'superchat'] }],
  ['in the query', {}, { tokenIn: 'query' }],
  ['as the first message', { AUTH_FIRST_MESSAGE: 'true' }, { tokenIn: 'message' }],
  ['as a ticket', { TICKETS: 'true' }, { tickets: true }],
]) {
  test(`a token ${name}`, async (t) => {
    const gate = await startGate(t, settings);
    const socket = connect(t, gate.url, { token: async () => 'token', ...more });
    socket.send('before it is open');
    assert.equal((await next(socket, 'message')).data, answer('before it is open'));
    assert.equal(socket.readyState, 1);
    socket.close(1000, 'bye');
    const end = await next(socket, 'close');
    assert.deepEqual([end.code, end.wasClean, socket.readyState], [1000, true, 3]);
  });
}

test('it comes back when the gate does, and sends what waited', async (t) => {
  const free = createServer().listen(0, '127.0.0.1');
  await once(free, 'listening');
  const address = `127.0.0.1:${free.address().port}`;
  free.close();
  const first = await startGate(t, { LISTEN_ADDR: address });
  const socket = connect(t, `ws://${address}/`, { token: () => 'token', maxQueue: 20 });
  await next(socket, 'open');
  const lost = next(socket, 'reconnecting');
  await first.stop();
  const { code, attempt } = await lost;
  assert.deepEqual([code, attempt, socket.readyState], [1001, 1, 0]);
  assert.equal(socket.send('while it is away'), true);
  assert.equal(socket.bufferedAmount, 16);
  assert.equal(socket.send('too much'), false);
  const message = next(socket, 'message');
  await startGate(t, { LISTEN_ADDR: address });
  assert.equal((await message).data, answer('while it is away'));
  assert.equal(socket.bufferedAmount, 0);
});

test('it does not come back from a kick, and says why', async (t) => {
  const gate = await startGate(t);
  const socket = connect(t, gate.url, { token: () => 'token' });
  await next(socket, 'open');
  const end = next(socket, 'close');
  await gate.api('DELETE', '/sessions?all=true');
  const { code, reason } = await end;
  assert.deepEqual([code, reason, socket.readyState, socket.send('late')], [3003, 'kicked', 3, false]);
});

test('codes of the application are final, unless it says otherwise', async (t) => {
  const gate = await startGate(t);
  const final = connect(t, gate.url, { token: () => 'token' });
  const again = connect(t, gate.url, { token: () => 'token', comeBack: (code, reason) => code === 4000 && reason === 'bye' });
  await Promise.all([next(final, 'open'), next(again, 'open')]);
  const end = next(final, 'close');
  const lost = next(again, 'reconnecting');
  await gate.api('DELETE', '/sessions?all=true&code=4000&reason=bye');
  assert.deepEqual([(await end).code, (await lost).code], [4000, 4000]);
  await next(again, 'open');
});

test('close while away is at once, and not clean', async (t) => {
  const socket = connect(t, 'ws://127.0.0.1:1/', {});
  await next(socket, 'reconnecting');
  const end = next(socket, 'close');
  socket.close();
  const { code, wasClean } = await end;
  assert.deepEqual([code, wasClean], [1006, false]);
});

test('a session is renewed before its token ends', async (t) => {
  const gate = await startGate(t, { AUTH_MODE: 'jwt', AUTH_JWT_SECRET: secret, RENEWAL: 'true', SESSION_HELLO: 'true' });
  let asked = 0;
  const socket = connect(t, gate.url, { renew: true, token: () => { asked += 1; return sign(4); } });
  socket.addEventListener('reconnecting', ({ code, reason }) => assert.fail(`lost with ${code} ${reason}`));
  socket.addEventListener('message', ({ data }) => assert.ok(data.startsWith('MENSAGEM'), `the gate's own message came through: ${data}`));
  await next(socket, 'open');
  const sessions = (await gate.api('GET', '/sessions')).sessions.map(({ id }) => id);
  await new Promise((resolve) => { setTimeout(resolve, 6000); }); // the first token has ended
  await echoes(socket, 'still here');
  assert.ok(asked >= 2);
  assert.deepEqual((await gate.api('GET', '/sessions')).sessions.map(({ id }) => id), sessions, 'one session all the time');
  socket.close();
  await next(socket, 'close');
});

test('a token that has ended is followed by a fresh one', async (t) => {
  const gate = await startGate(t, { AUTH_MODE: 'jwt', AUTH_JWT_SECRET: secret });
  const lifetimes = [2, 60];
  const socket = connect(t, gate.url, { token: () => sign(lifetimes.shift()) });
  await next(socket, 'open');
  assert.equal((await next(socket, 'reconnecting')).reason, 'token expired');
  await next(socket, 'open');
  await echoes(socket, 'here again');
  assert.equal(lifetimes.length, 0);
});

test('what was pushed while it was away comes once, in order', async (t) => {
  const gate = await startGate(t, { PUSH_HISTORY: '100,1m', SESSION_HELLO: 'true' });
  const got = [];
  const socket = connect(t, gate.url, { token: () => 'token', history: true });
  socket.onmessage = ({ data }) => got.push(data);
  socket.addEventListener('gap', () => got.push('gap'));
  await next(socket, 'open');
  const push = (i) => gate.api('POST', '/messages?all=true', `push ${i}`);
  await push(0);
  const lost = next(socket, 'reconnecting');
  await gate.api('DELETE', '/sessions?all=true&code=3008'); // as if it had not answered a ping
  await lost;
  const open = next(socket, 'open');
  for (let i = 1; i < 20; i++) await push(i);
  await open;
  await push(20);
  while (got.length < 21) await next(socket, 'message');
  assert.deepEqual(got, Array.from({ length: 21 }, (_, i) => `push ${i}`));
});

test('it is told when the history no longer reaches back', async (t) => {
  const gate = await startGate(t, { PUSH_HISTORY: '1,1m', SESSION_HELLO: 'true' });
  const got = [];
  let pushed = Promise.resolve(); // it comes back after that
  const socket = connect(t, gate.url, { token: () => pushed.then(() => 'token'), history: true });
  socket.onmessage = ({ data }) => got.push(data);
  socket.addEventListener('gap', () => got.push('gap'));
  await next(socket, 'open');
  const push = (i) => gate.api('POST', '/messages?all=true', `push ${i}`);
  await push(0);
  let done;
  pushed = new Promise((resolve) => { done = resolve; });
  const lost = next(socket, 'reconnecting');
  await gate.api('DELETE', '/sessions?all=true&code=3008');
  await lost;
  const open = next(socket, 'open');
  for (let i = 1; i < 4; i++) await push(i);
  done();
  await open;
  while (got.length < 3) await next(socket, 'message');
  assert.deepEqual(got, ['push 0', 'gap', 'push 3']);
});
