export { openTransport, type Pace, type StoqLimits } from './transport.ts';
