-- One step of one coupon, atomically. The state machine (see server/coupons.py):
--
--   (none) --apply--> applied --redeem--> redeemed --rollback--> applied
--
-- KEYS[1]  the coupon's hash: offer, state, applied_ms, expires_ms; while redeemed also redemption, redeemed_store,
--          redeemed_ms; and void:<redemption id> for each redemption that was rolled back.
-- ARGV     step, now_ms, then what the step needs. Time is the caller's: replays and tests bring their own.
-- Returns  {verdict, {offer, state, applied_ms, redemption, redeemed_store, redeemed_ms}}, or {verdict} alone.

local key, step, now_ms = KEYS[1], ARGV[1], tonumber(ARGV[2])

local function answer(verdict)
  return {verdict, redis.call('HMGET', key, 'offer', 'state', 'applied_ms', 'redemption', 'redeemed_store', 'redeemed_ms')}
end

local state = redis.call('HGET', key, 'state')

if step == 'apply' then
  local offer, expires_ms, keep_ms = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
  if state then return answer('again') end
  if now_ms >= expires_ms then return {'coupon_expired'} end
  redis.call('HSET', key, 'offer', offer, 'state', 'applied', 'applied_ms', ARGV[2], 'expires_ms', ARGV[4])
  -- Relative to the caller's time, not to the server's.
  redis.call('PEXPIRE', key, expires_ms - now_ms + keep_ms)
  return answer('new')
end

if not state then return {'unknown_coupon'} end

if step == 'validate' then
  return answer('known')
end

if step == 'redeem' then
  local store, redemption = ARGV[3], ARGV[4]
  if state == 'redeemed' then
    local by = redis.call('HMGET', key, 'redemption', 'redeemed_store')
    if by[1] == redemption and by[2] == store then return answer('again') end
    return {'already_redeemed'}
  end
  -- A redemption that was called off stays called off, even if its own request arrives late.
  if redis.call('HEXISTS', key, 'void:' .. redemption) == 1 then return {'redemption_rolled_back'} end
  if now_ms >= tonumber(redis.call('HGET', key, 'expires_ms')) then return {'coupon_expired'} end
  redis.call('HSET', key, 'state', 'redeemed', 'redemption', redemption, 'redeemed_store', store, 'redeemed_ms', ARGV[2])
  return answer('new')
end

if step == 'rollback' then
  local redemption = ARGV[3]
  if redis.call('HEXISTS', key, 'void:' .. redemption) == 1 then return answer('again') end
  if state == 'redeemed' and redis.call('HGET', key, 'redemption') ~= redemption then return {'already_redeemed'} end
  redis.call('HSET', key, 'state', 'applied', 'void:' .. redemption, ARGV[2])
  redis.call('HDEL', key, 'redemption', 'redeemed_store', 'redeemed_ms')
  return answer('new')
end

return redis.error_reply('unknown step')
