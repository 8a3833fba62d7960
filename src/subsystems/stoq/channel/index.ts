export { openChannel } from './channel.ts';
export type * from './types.ts';
