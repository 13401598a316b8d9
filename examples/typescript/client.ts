// Shows a user's notifications as they come, over Socket.IO. socket.io-client reconnects by itself and is given what it missed.
//
// Usage: NEXUS_TOKEN=… node dist/client.js
import { io } from 'socket.io-client';

// What this program uses of a notification.
interface Notification {
  id: string;
  title: string;
  body: string;
}

const base = process.env.NEXUS_URL ?? 'http://localhost:3000';
const socket = io(base + '/dashboard', {
  query: { userId: process.env.NEXUS_USER ?? 'alice', token: process.env.NEXUS_TOKEN },
});

socket.on('connected', () => console.log('connected'));

socket.on('notification', (n: Notification) => {
  // After a reconnect the same notification may come again; who must not show it twice remembers its id.
  console.log(`${n.title}: ${n.body} (${n.id})`);
});

socket.on('error', (error: unknown) => console.error('the server says:', error));

socket.on('connect_error', (error) => {
  console.error('not connected:', error.message);
  if (!socket.active) process.exit(1); // the server refused it; after anything else the client tries again
});
