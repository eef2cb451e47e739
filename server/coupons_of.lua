-- All coupons of one customer at once.
--
-- KEYS[1]  the customer's index of coupons: codes by when their records go.
-- ARGV     what, then what it needs:
--            forget   the customer: no record of them stays.
--            left     the store that the customer left, and now_ms: what was reserved for as long as they are in it is
--                     free again.
-- Returns  how many coupons it has changed.

local what, codes, changed = ARGV[1], redis.call('ZRANGE', KEYS[1], 0, -1), 0

local function leave_purchase(store, redemption, code)
  if store and redemption then
    redis.call('SREM', 'nearcast:purchase:{' .. store .. '\31' .. redemption .. '}', code)
  end
end

for _, code in ipairs(codes) do
  local key = 'nearcast:coupon:{' .. code .. '}'
  local c = redis.call(
    'HMGET', key, 'held_store', 'held_by', 'while_in_store', 'redeemed_store', 'redemption', 'store', 'block',
    'held_until_ms'
  )
  if what == 'forget' then
    leave_purchase(c[1], c[2], code)
    leave_purchase(c[4], c[5], code)
    if c[6] then redis.call('ZREM', 'nearcast:store-coupons:{' .. c[6] .. '}', code) end
    if c[7] then redis.call('SREM', 'nearcast:block:{' .. c[7] .. '}:codes', code) end
    changed = changed + redis.call('UNLINK', key)
  elseif c[2] and c[1] == ARGV[2] and c[3] == '1' then
    leave_purchase(c[1], c[2], code)
    redis.call('HDEL', key, 'held_by', 'held_store', 'held_until_ms', 'while_in_store')
    if tonumber(ARGV[3]) < tonumber(c[8]) then changed = changed + 1 end
  end
end

if what == 'forget' then
  redis.call('UNLINK', KEYS[1])
  for _, kind in ipairs({'applied-lately', 'redeemed-lately'}) do
    redis.call('UNLINK', 'nearcast:' .. kind .. ':{' .. ARGV[2] .. '}')
  end
end
return changed
