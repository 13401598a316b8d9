// Drives the guide's own TypeScript, cut out of docs/product-guide.md and only compiled, against a running server.
// Usage: node guide.mjs BASE GUIDE TOKENS, where TOKENS is {"alice":…,"bob":…,"service":…}. Exit code 0: all was seen.
import { readFileSync, writeFileSync, mkdtempSync, rmSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

const [base, guide, tokenText] = process.argv.slice(2);
const tokens = JSON.parse(tokenText);
const here = dirname(fileURLToPath(import.meta.url));
const text = readFileSync(guide, 'utf8');
globalThis.window = {}; // the sample asks it for browser notifications

async function sample(heading, name) {
  const from = text.indexOf(heading);
  const code = text.slice(from).match(/```typescript\n([\s\S]*?)```/)[1];
  if (!code.includes(`class ${name}`)) throw new Error(`no ${name} under ${heading}`);
  const js = ts.transpileModule(code.replaceAll('http://localhost:3000', base) + `\nexport { ${name} };\n`, {
    compilerOptions: { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022 },
  }).outputText;
  const dir = mkdtempSync(join(here, 'node_modules', '.guide-')); // where socket.io-client is found
  const file = join(dir, 'sample.mjs');
  writeFileSync(file, js);
  try { return (await import(file))[name]; } finally { rmSync(dir, { recursive: true }); }
}

console.log = () => {}; // the samples print what they get
const DashboardService = await sample('### Dashboard WebSocket Connection', 'DashboardService');
const MessagingService = await sample('### Messaging WebSocket Connection', 'MessagingService');

// open connects a service of the guide's for a user and notes every event it gets.
function open(Service, user) {
  const service = new Service();
  service.connect(user, tokens[user]);
  const seen = [];
  service.socket.onAny((event, ...args) => seen.push([event, ...args]));
  service.socket.on('connect_error', (e) => fail(`${user}: connect_error ${e.message}`));
  service.seen = seen;
  service.user = user;
  return service;
}

function fail(message) { process.stderr.write(message + '\n'); process.exit(1); }
process.on('unhandledRejection', (e) => fail(e.stack));

// expect waits for an event that check accepts.
async function expect(service, event, check = () => true) {
  const end = Date.now() + 10000;
  for (;;) {
    const found = service.seen.find(([e, data]) => e === event && check(data));
    if (found) return found[1];
    if (Date.now() > end) fail(`${service.user} did not get ${event}; got ${JSON.stringify(service.seen)}`);
    await new Promise((r) => setTimeout(r, 10));
  }
}
function exactly(data, ...fields) {
  const got = Object.keys(data).sort().join();
  if (got !== fields.sort().join()) fail(`fields ${got}, want ${fields}`);
}
function same(got, want, what) { if (got !== want) fail(`${what}: ${got}, want ${want}`); }
const rfc3339 = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/;

async function post(path, body, token = tokens.service) {
  const r = await fetch(base + path, { method: 'POST', body: JSON.stringify(body),
    headers: { authorization: 'Bearer ' + token, 'content-type': 'application/json' } });
  if (r.status !== 202) fail(`POST ${path}: ${r.status} ${await r.text()}`);
  return r.json();
}

const alice = open(DashboardService, 'alice'), aliceChat = open(MessagingService, 'alice');
const hello = await expect(alice, 'connected');
exactly(hello, 'userId', 'timestamp', 'message');
same(hello.message, 'Dashboard connection established', 'greeting');
same(hello.userId, 'alice', 'greeting');
if (!rfc3339.test(hello.timestamp)) fail('timestamp ' + hello.timestamp);
await expect(aliceChat, 'connected', (d) => d.message === 'Messaging connection established');
same(alice.socket.io.engine.id, aliceChat.socket.io.engine.id, 'one session for both namespaces');

const bob = open(DashboardService, 'bob'), bobChat = open(MessagingService, 'bob');
await expect(bob, 'connected');
await expect(bobChat, 'connected');
exactly(await expect(alice, 'user_status', (d) => d.userId === 'bob' && d.status === 'online'), 'userId', 'status', 'timestamp');
exactly(await expect(aliceChat, 'presence:online', (d) => d.userId === 'bob'), 'userId', 'timestamp');
exactly(await expect(alice, 'stats_update', (d) => d.messages === 0), 'connections', 'messages', 'posts', 'timestamp');

// A message, its confirmation, typing, and the receipt.
let typed;
bobChat.showTypingIndicator = (d) => { typed = d; };
aliceChat.startTyping('bob');
exactly(await expect(bobChat, 'typing:start', (d) => d.userId === 'alice'), 'userId', 'isTyping', 'timestamp');
await expect(bobChat, 'TYPING_INDICATOR', (d) => d.isTyping === true);
same(typed.isTyping, true, 'showTypingIndicator');
aliceChat.stopTyping('bob');
await expect(bobChat, 'typing:stop', (d) => d.isTyping === false);
let handled;
bobChat.handleNewMessage = (m) => { handled = m; };
aliceChat.sendMessage('bob', 'Hello, Bob');
const message = await expect(bobChat, 'message:new', (d) => d.content === 'Hello, Bob');
exactly(message, 'id', 'senderId', 'receiverId', 'content', 'timestamp');
await expect(bobChat, 'MESSAGE_BROADCAST', (d) => d.id === message.id);
same(handled.id, message.id, 'handleNewMessage');
same((await expect(aliceChat, 'message:sent')).id, message.id, 'message:sent');
bobChat.markAsRead(message.id);
for (const chat of [aliceChat, bobChat]) {
  const read = await expect(chat, 'message:read', (d) => d.messageId === message.id);
  exactly(read, 'messageId', 'userId', 'timestamp');
  same(read.userId, 'bob', 'who read');
}
await expect(alice, 'stats_update', (d) => d.messages === 1);
await expect(bob, 'stats_update', (d) => d.messages === 1);

// A repeat within the window reaches the sender as such, and nobody else.
aliceChat.sendMessage('bob', 'Hello, Bob');
const again = await expect(aliceChat, 'message:sent', (d) => d.duplicate === true);
same(again.id, message.id, 'id of the repeat');
const ack = await aliceChat.socket.emitWithAck('sendMessage', { receiverId: 'bob', content: 'named', clientMessageId: 'c-1' });
same(ack.ok, true, 'acknowledgement');
const repeat = await aliceChat.socket.emitWithAck('sendMessage', { receiverId: 'bob', content: 'named', clientMessageId: 'c-1' });
same(repeat.id, ack.id, 'id of a named repeat');
same(repeat.duplicate, true, 'named repeat');
const refusal = await aliceChat.socket.emitWithAck('sendMessage', { receiverId: 'bob' });
same(refusal.error.code, 'invalid_payload', 'refusal');
same((await bobChat.socket.emitWithAck('markAsRead', { messageId: 'none' })).error.code, 'not_found', 'unknown message');
same((await aliceChat.socket.emitWithAck('markAsRead', { messageId: message.id })).error.code, 'not_found', 'own message');
await expect(bobChat, 'message:new', (d) => d.id === ack.id);

// Notification, activity, announcement; channels.
let shown;
alice.showNotification = (n) => { shown = n; };
const { id } = await post('/notifications', { userId: 'alice', title: 'New Message', body: 'John sent you a message', type: 'CONNECTION_ACCEPTED',
  priority: 'high', data: { senderId: 'sender-uuid' } });
const notification = await expect(alice, 'notification', (d) => d.id === id);
exactly(notification, 'id', 'title', 'body', 'type', 'priority', 'data', 'timestamp');
same(shown.id, id, 'showNotification');
await post('/activities', { userId: 'alice', type: 'post_created', message: 'You posted' });
exactly(await expect(alice, 'activity', (d) => d.type === 'post_created'), 'id', 'type', 'userId', 'message', 'timestamp');
await expect(alice, 'stats_update', (d) => d.connections === 1 && d.posts === 1);
await post('/announcements', { title: 'System Maintenance', body: 'Scheduled maintenance tonight' });
for (const d of [alice, bob]) exactly(await expect(d, 'announcement'), 'id', 'title', 'body', 'timestamp');
alice.subscribe(['referrals', 'events', 'projects']);
const joined = await alice.socket.emitWithAck('subscribe', { channels: ['more', 'not allowed!'] });
same(joined.channels.sort().join(), 'events,more,projects,referrals', 'channels');
same(joined.refused[0].code, 'invalid_payload', 'refused channel');
await post('/notifications', { channel: 'referrals', title: 'to the channel', body: '', type: 'SYSTEM' });
await expect(alice, 'notification', (d) => d.title === 'to the channel');
alice.unsubscribe(['referrals']);
await alice.socket.emitWithAck('unsubscribe', { channels: [] }); // events are handled in order
await post('/notifications', { channel: 'referrals', title: 'missed', body: '', type: 'SYSTEM' });
await post('/notifications', { channel: 'events', title: 'after', body: '', type: 'SYSTEM' });
await expect(alice, 'notification', (d) => d.title === 'after');
same(alice.seen.filter(([, d]) => d.title === 'missed').length, 0, 'events of a channel that was left');
same(bob.seen.filter(([e]) => e === 'notification').length, 0, 'events of channels that were never joined');
same(bobChat.seen.filter(([e, d]) => e === 'message:new' && d.content === 'Hello, Bob').length, 1, 'deliveries of the message');

// A CONNECT without good credentials is refused, by name.
const { io } = await import('socket.io-client');
for (const [ns, auth, message, code] of [
  ['/dashboard', { userId: 'alice', token: 'nonsense' }, 'the token is not one signed for this server', 'token_invalid'],
  ['/ws', { userId: 'bob', token: tokens.alice }, "userId is not the token's user", 'forbidden'],
  ['/other', { userId: 'alice', token: tokens.alice }, 'Invalid namespace', undefined],
]) {
  const s = io(base + ns, { auth, transports: ['websocket'], forceNew: true, reconnection: false });
  const e = await new Promise((r) => s.on('connect_error', r));
  same(e.message, message, 'connect_error of ' + ns);
  same(e.data?.code, code, 'code of ' + ns);
  s.disconnect();
}

bob.disconnect();
bobChat.socket.disconnect();
await expect(alice, 'user_status', (d) => d.userId === 'bob' && d.status === 'offline');
await expect(aliceChat, 'presence:offline', (d) => d.userId === 'bob');
alice.disconnect();
aliceChat.socket.disconnect();
process.stdout.write('guide: all seen\n');
